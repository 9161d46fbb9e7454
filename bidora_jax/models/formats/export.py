"""Writes a merged model, a PEFT adapter, a plain LoRA or a bare model, and proves it before its folder gets its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from bidora_jax.errors import InputError, RunError, listing
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, PyTree

    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.adapters.lora_approximation import Judge, LoraApproximation
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec
    from bidora_jax.models.formats.hf_head import Classes
    from bidora_jax.models.formats.parity import Agreement


FLOAT16_MAX = 65_504


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


def merged_model(trained: Trained, dtype: str) -> "PyTree":
    """The dense model with the adapter folded in."""
    from bidora_jax.models import rounded_merge
    from bidora_jax.models.adapters import merging

    return merging.dequantise(rounded_merge.merge(*trained[1:5], dtype), dtype)


def _before(trained: Trained) -> "Float[np.ndarray, 'B _ C']":
    """The probe's logits of the base without its adapter."""
    from bidora_jax.models.formats import parity

    return parity.before_training(trained.config, trained.base, trained.direction, trained.head)


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

    Always dense: a quantised base is dequantised. `ends` are the tokens that end an answer. `to` says what the proof compares with.
    """
    from bidora_jax.machine.files import staged
    from bidora_jax.models.formats import hf, hf_head, parity

    expected, before = parity.probe_logits(*trained[:6]), _before(trained)
    with staged(folder, replace=replace) as fresh:
        merged = merged_model(trained, dtype)
        check_range(merged, dtype)
        classifier = None if trained.head is None else (trained.head, trained.classes)
        hf.write_model(fresh, source, trained.config, merged, dtype=dtype, ends=ends, classifier=classifier)
        hf_head.write_labels(fresh, trained.classes)
        del merged
        _prove("merged model", to, dtype, parity.verify_saved(fresh, expected, trained.head, before))
    print(f"merged model written to {folder}")


def check_range(merged: "PyTree", dtype: str) -> None:
    """InputError for weights that are beyond the range of float16, where that is what is written."""
    if dtype == "float16" and (wrong := beyond_float16(merged)):
        raise InputError(
            f"float16 reaches to {FLOAT16_MAX:,}, and weights of the merged model are beyond it:\n{listing(wrong)}\n"
            "use --dtype bfloat16 or float32"
        )


def beyond_float16(merged: "PyTree") -> list[str]:
    """The weights of a dense model that float16 can't hold. A head is written in float32, and does not count."""
    import jax
    import numpy as np

    from bidora_jax.kernels import quantized
    from bidora_jax.kernels.xla_cpu.weights import Bits
    from bidora_jax.models.architectures.heads import HEAD_TREE

    wrong = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged, is_leaf=quantized.is_packed):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        array = np.asarray(leaf.bits).view(leaf.dtype) if isinstance(leaf, Bits) else np.asarray(leaf)
        parts = array if array.ndim > 2 else array[None]
        fits = all(np.abs(one.astype(np.float32)).max() <= FLOAT16_MAX for one in parts)
        if not fits and not name.startswith(HEAD_TREE):  # NaN does not fit
            wrong.append(name)
    return wrong


def half_of(trained: Trained) -> str:
    """float16 where every weight of the merged model fits its range, else bfloat16; says which."""
    wrong = beyond_float16(merged_model(trained, "float16"))
    chosen = "bfloat16" if wrong else "float16"
    why = f"{wrong[0]} is beyond the range of float16" if wrong else "every weight fits, and it has three bits more"
    print(f"--dtype half: {chosen}, as {why}")
    return chosen


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
        merged = merged_model(over, dtype)
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
    expected, before = parity.probe_logits(*trained[:6]), _before(trained)
    adapter, settings, direction = converted(adapter, settings, base, direction)
    adapter, direction = merging.held_whole(adapter, base, direction)
    with staged(folder, replace=replace) as fresh:
        peft.write_adapter(fresh, config, adapter, settings, direction, magnitude, base_model_name=base_model_name)
        hf_head.write_labels(fresh, trained.classes)
        if adapter.head is not None:
            hf_head.write_readme(fresh, folder, adapter.head.kind, trained.classes)
        proof = parity.verify_adapter(fresh, config, base, expected, trained.head, before)
        _prove("adapter", "trained model", "float32", proof)
    print(f"adapter written to {folder}")


def write_lora(
    folder: Path,
    base_model_name: str,
    trained: Trained,
    *,
    rank: int = 0,
    max_error: float = 0.1,
    judge: "Judge | None" = None,
) -> str:
    """The adapter as a plain LoRA; what is read back from the file must be what it is in memory.

    Where the plain LoRA is not the adapter itself, how far it is from it is printed and returned; else the text is empty. Without a
    rank the lowest is taken that `judge` finds near enough (models/adapters/lora_approximation.py).
    """
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters.lora_approximation import approximate
    from bidora_jax.models.formats import hf_head, parity, peft

    config, adapter, base, direction, magnitude, *_ = trained
    with staged(folder) as fresh:
        found = approximate(adapter, config, base, direction, magnitude, rank=rank, max_error=max_error, judge=judge)
        if adapter.head is not None:
            found = found.with_head(adapter.head, direction)
        of_trained, plain = parity.probe_logits(*trained[:6]), _before(trained)
        expected, to, said = of_trained, "trained model", ""
        if found.errors:
            expected, to = (
                parity.probe_logits(config, found.adapter, base, found.direction, {}, trained.head),
                "plain LoRA in memory",
            )
            said = _how_far(found, parity.compare(expected, of_trained, "float32"))
            lost = parity.compare(plain, of_trained, "float32")
            print(f"{said} (the base without an adapter {lost.largest:.2e})")
        peft.write_adapter(
            fresh, config, found.adapter, found.settings, found.direction, {}, base_model_name=base_model_name
        )  # fmt: skip
        hf_head.write_labels(fresh, trained.classes)
        if adapter.head is not None:
            hf_head.write_readme(fresh, folder, adapter.head.kind, trained.classes)
        proof = parity.verify_adapter(fresh, config, base, expected, trained.head, plain)
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
            f"(largest logit {found.scale:.3g}, {found.tolerance:.1e} allowed for {dtype}); "
            f"{found.kept:.1%} of what the adapter changes is kept")  # fmt: skip
    if not found.holds:
        raise RunError(f"the {what} that was written is not the {to}: {said}; it was removed")
    print(f"{what} read back: {said}")
