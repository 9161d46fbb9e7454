"""Writes a trained adapter as a merged model, a PEFT adapter or a plain LoRA, and proves the files before they get their name."""

from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.errors import RunError
from bidora_jax.models.adapters.settings import AdapterConfig

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.adapters.lora_approximation import LoraApproximation
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.models.formats.parity import Agreement


def _merged(adapter: "Adapter", base: "PyTree", direction: "PyTree", magnitude: "PyTree", dtype: str) -> "PyTree":
    """The dense model with the adapter folded in."""
    from bidora_jax.models.adapters import merging

    return merging.dequantise(merging.merge(adapter, base, direction, magnitude, dtype), dtype)


def write_merged(
    folder: Path, source: Path, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, dtype: str, replace: bool = False, to: str = "trained model",
) -> None:  # fmt: skip
    """The model with its adapter folded in, as a Hugging Face folder like `source`, proved before it gets its name.

    Always dense: a quantised base is dequantised. `to` says what the proof compares with.
    """
    from bidora_jax.machine.files import staged
    from bidora_jax.models.formats import hf, parity

    expected = parity.probe_logits(config, adapter, base, direction, magnitude)
    with staged(folder, replace=replace) as fresh:
        merged = _merged(adapter, base, direction, magnitude, dtype)
        hf.write_model(fresh, source, config, merged, dtype=dtype)
        del merged
        _prove("merged model", to, dtype, parity.verify_saved(fresh, expected))
    print(f"merged model written to {folder}")


def write_adapter(
    folder: Path, settings: AdapterConfig, base_model_name: str, config: "DecoderConfig", adapter: "Adapter",
    base: "PyTree", direction: "PyTree", magnitude: "PyTree", *, replace: bool = False,
) -> None:  # fmt: skip
    """The adapter as a PEFT folder that fits the base as its files hold it, proved before it gets its name."""
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters.conversion import converted
    from bidora_jax.models.formats import parity, peft

    expected = parity.probe_logits(config, adapter, base, direction, magnitude)
    adapter, settings, direction = converted(adapter, settings, base, direction)
    with staged(folder, replace=replace) as fresh:
        peft.write_adapter(fresh, config, adapter, settings, direction, magnitude, base_model_name=base_model_name)
        _prove("adapter", "trained model", "float32", parity.verify_adapter(fresh, config, base, expected))
    print(f"adapter written to {folder}")


def write_lora(
    folder: Path, base_model_name: str, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, rank: int = 0, max_error: float = 0.1,
) -> str:  # fmt: skip
    """The adapter as a plain LoRA, whose file is proved to equal the LoRA in memory. Where the LoRA is not exactly the adapter,
    the difference is printed and returned."""
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters.lora_approximation import approximate
    from bidora_jax.models.formats import parity, peft

    with staged(folder) as fresh:
        found = approximate(adapter, config, base, direction, magnitude, rank=rank, max_error=max_error)
        trained = parity.probe_logits(config, adapter, base, direction, magnitude)
        expected, to, said = trained, "trained model", ""
        if found.errors:
            expected, to = parity.probe_logits(config, found.adapter, base, found.direction, {}), "plain LoRA in memory"
            said = _how_far(found, parity.compare(expected, trained, "float32"))
            before = parity.compare(parity.probe_logits(config, None, base, {}, {}), trained, "float32")
            print(f"{said} (the base without an adapter {before.largest:.2e})")
        peft.write_adapter(
            fresh, config, found.adapter, found.settings, found.direction, {}, base_model_name=base_model_name
        )  # fmt: skip
        proof = parity.verify_adapter(fresh, config, base, expected)
        _prove(f"plain LoRA of rank {found.rank}", to, "float32", proof)
    print(f"plain LoRA written to {folder}")
    return said


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
