"""Writes a merged model, a PEFT adapter, a plain LoRA or a bare model, and proves it before its folder gets its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from bidora_jax.errors import RunError
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.adapters.lora_approximation import LoraApproximation
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec
    from bidora_jax.models.formats.hf_head import Classes
    from bidora_jax.models.formats.parity import Agreement


class Trained(NamedTuple):
    """A model with the adapter that was trained on it."""

    config: "Architecture"
    adapter: "Adapter"
    base: "PyTree"
    direction: "PyTree"
    magnitude: "PyTree"
    head: "HeadSpec | None" = None
    """Of a classifier."""
    classes: "Classes | None" = None
    """What its outputs stand for."""


def _merged(trained: Trained, dtype: str) -> "PyTree":
    """The dense model with the adapter folded in."""
    from bidora_jax.models.adapters import merging

    _, adapter, base, direction, magnitude, *_ = trained
    return merging.dequantise(merging.merge(adapter, base, direction, magnitude, dtype), dtype)


def write_merged(
    folder: Path,
    source: Path,
    trained: Trained,
    *,
    dtype: str,
    ends: Sequence[int] = (),
    replace: bool = False,
    to: str = "trained model",
) -> None:
    """The model with its adapter folded in, as a Hugging Face folder like `source`, proved before it gets its name.

    Always dense: a quantised base is dequantised. `ends` are the tokens that end an answer. `to` says what the proof compares
    with.
    """
    from bidora_jax.machine.files import staged
    from bidora_jax.models.formats import hf, hf_head, parity

    expected = parity.probe_logits(*trained[:6])
    with staged(folder, replace=replace) as fresh:
        merged = _merged(trained, dtype)
        classifier = None if trained.head is None else (trained.head, trained.classes)
        hf.write_model(fresh, source, trained.config, merged, dtype=dtype, ends=ends, classifier=classifier)
        hf_head.write_labels(fresh, trained.classes)
        del merged
        _prove("merged model", to, dtype, parity.verify_saved(fresh, expected, trained.head))
    print(f"merged model written to {folder}")


def write_merged_over(
    chosen: Literal["quantized", "original"],
    folder: Path,
    source: Path,
    trained: Trained,
    *,
    dtype: str,
    ends: Sequence[int] = (),
) -> None:
    """The merged model of a run on a quantised base: the update added to the dequantised weights, or to those of `source`.

    Prints for both of them how far their logits are from those of the model that was trained.
    """
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.base import dtype_of
    from bidora_jax.models.formats import hf, parity

    expected, over = parity.probe_logits(*trained[:6]), trained
    for name in sorted(("quantized", "original"), key=lambda name: name == chosen):  # the chosen one last
        over = trained
        if name == "original":
            original = hf.load_base(source, trained.config, hf.source_dtype(source, dtype_of(trained.base).name))
            over = trained._replace(base=initial.prepare_base(original, trained.adapter))
            del original
        merged = _merged(over, dtype)
        found = parity.compare(parity.probe_logits(trained.config, None, merged, {}, {}, trained.head), expected, dtype)
        del merged
        print(f"update over the {name} weights: largest logit difference to the trained model {found.largest:.2e} "
              f"(largest logit {found.scale:.3g})")  # fmt: skip
    to = "trained model" if chosen == "quantized" else "update over the original weights"
    write_merged(folder, source, over, dtype=dtype, ends=ends, to=to)


def write_adapter(
    folder: Path, settings: AdapterConfig, base_model_name: str, trained: Trained, *, replace: bool = False
) -> None:
    """The adapter as a PEFT folder that fits the base as its files hold it, proved before it gets its name."""
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters import merging
    from bidora_jax.models.adapters.conversion import converted
    from bidora_jax.models.formats import hf_head, parity, peft

    config, adapter, base, direction, magnitude, *_ = trained
    expected = parity.probe_logits(*trained[:6])
    adapter, settings, direction = converted(adapter, settings, base, direction)
    adapter, direction = merging.held_whole(adapter, base, direction)
    with staged(folder, replace=replace) as fresh:
        peft.write_adapter(fresh, config, adapter, settings, direction, magnitude, base_model_name=base_model_name)
        hf_head.write_labels(fresh, trained.classes)
        if adapter.head is not None:
            hf_head.write_readme(fresh, folder, adapter.head.kind, trained.classes)
        _prove(
            "adapter", "trained model", "float32", parity.verify_adapter(fresh, config, base, expected, trained.head)
        )
    print(f"adapter written to {folder}")


def write_lora(folder: Path, base_model_name: str, trained: Trained, *, rank: int = 0, max_error: float = 0.1) -> str:
    """The adapter as a plain LoRA; what is read back from the file must be what it is in memory.

    Where the plain LoRA is not the adapter itself, how far it is from it is printed and returned; else the text is empty.
    """
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters.lora_approximation import approximate
    from bidora_jax.models.formats import hf_head, parity, peft

    config, adapter, base, direction, magnitude, *_ = trained
    with staged(folder) as fresh:
        found = approximate(adapter, config, base, direction, magnitude, rank=rank, max_error=max_error)
        if adapter.head is not None:
            found = found.with_head(adapter.head, direction)
        of_trained = parity.probe_logits(*trained[:6])
        expected, to, said = of_trained, "trained model", ""
        if found.errors:
            expected, to = (
                parity.probe_logits(config, found.adapter, base, found.direction, {}, trained.head),
                "plain LoRA in memory",
            )
            said = _how_far(found, parity.compare(expected, of_trained, "float32"))
            before = ""
            if trained.head is None:
                plain = parity.compare(parity.probe_logits(config, None, base, {}, {}), of_trained, "float32")
                before = f" (the base without an adapter {plain.largest:.2e})"
            print(f"{said}{before}")
        peft.write_adapter(
            fresh, config, found.adapter, found.settings, found.direction, {}, base_model_name=base_model_name
        )  # fmt: skip
        hf_head.write_labels(fresh, trained.classes)
        if adapter.head is not None:
            hf_head.write_readme(fresh, folder, adapter.head.kind, trained.classes)
        proof = parity.verify_adapter(fresh, config, base, expected, trained.head)
        _prove(f"plain LoRA of rank {found.rank}", to, "float32", proof)
    print(f"plain LoRA written to {folder}")
    return said


def write_model(folder: Path, settings: ModelConfig) -> None:
    """The model of `settings.path` without an adapter, quantised as `settings` say; a quantised one is written dense where
    they ask for no quantisation."""
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters import merging
    from bidora_jax.models.architectures.heads import HEAD_TREE
    from bidora_jax.models.base import dtype_of
    from bidora_jax.models.formats import hf, hf_config, hf_head, parity

    source = hf_config.resolve_folder(settings.path)
    config, head = hf_config.read_config(source), None
    if hf_head.is_classifier(source):
        config = config.without_output()
        head = hf_head.of_folder(source, config)
    base = hf.load(settings, source, config, flag="--dtype")
    dtype = dtype_of(base).name
    base = merging.dequantise(base) if settings.quantization == "none" else base
    base = base if head is None else {**base, HEAD_TREE: hf_head.load(source, config, head)}
    expected = parity.probe_logits(config, None, base, {}, {}, head)
    with staged(folder) as fresh:
        hf.write_model(fresh, source, config, base, dtype=dtype, classifier=None if head is None else (head, None))
        hf_head.copy_labels(source, fresh)
        del base
        _prove("model", "model in memory", dtype, parity.verify_saved(fresh, expected, head))
    print(f"model written to {folder}")


def _how_far(found: "LoraApproximation", logits: "Agreement") -> str:
    worst = max(found.errors, key=lambda name: found.errors[name])
    return (
        f"rank {found.rank}: relative Frobenius error of W' − W0 {found.error:.1%} over {len(found.errors)} modules, the worst "
        f"{worst} with {found.errors[worst]:.1%}; largest logit difference to the trained model {logits.largest:.2e}, "
        f"largest logit {logits.scale:.3g}"
    )


def _prove(what: str, to: str, dtype: str, found: "Agreement") -> None:
    said = (f"largest logit difference to the {to} {found.largest:.2e} "
            f"(largest logit {found.scale:.3g}, {found.tolerance:.1e} allowed for {dtype})")  # fmt: skip
    if not found.holds:
        raise RunError(f"the {what} that was written is not the {to}: {said}; it was removed")
    print(f"{what} read back: {said}")
