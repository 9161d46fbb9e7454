"""python -m bidora_jax.export --run DIR --format merged|adapter --output DIR [--dtype float32|bfloat16]

Hands a finished run back to the rest of the world: a Hugging Face model folder with the adapter folded in, or a PEFT
adapter. What was written is read back, and its logits must be those of the trained model before the folder gets its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bidora_jax.config import Config, read, resolve
from bidora_jax.errors import InputError, RunError, command

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters import Adapter
    from bidora_jax.models.decoder import DecoderConfig
    from bidora_jax.models.parity import Agreement


@dataclass(frozen=True)
class ExportArguments:
    """Write the result of a run as a merged model or as a PEFT adapter."""

    run: str
    """Folder of a finished run."""
    output: str
    """Folder to write; it must be new or empty."""
    format: Literal["merged", "adapter"] = "merged"
    """merged: a Hugging Face model folder; adapter: a PEFT folder."""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    """dtype of the merged weights; source keeps that of the base's files."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ExportArguments, args=argv, prog="python -m bidora_jax.export")
    export(arguments)


def export(arguments: ExportArguments) -> None:
    """Loads the run's base and adapter and writes them in the format asked for."""
    from bidora_jax.models import adapters, hf, peft

    run, config = Path(arguments.run), run_config(arguments.run)
    if not (run / "adapter").is_dir():
        raise InputError(
            f"{run} has no adapter/: the run is not finished; go on with train --config {run}/config.json --resume"
        )
    if arguments.format == "adapter" and arguments.dtype != "source":
        raise InputError("--dtype is for --format merged; adapters are float32, as PEFT writes them")
    source = hf.resolve_folder(config.model.path)
    decoder_config = hf.read_config(source)
    adapter, direction, magnitude = peft.load_adapter(run / "adapter", decoder_config)
    dtype = None if config.model.dtype == "auto" else config.model.dtype
    base = adapters.prepare_base(hf.load_base(source, decoder_config, dtype), adapter)
    trained = (adapter, base, direction, magnitude)
    if arguments.format == "adapter":
        write_adapter(Path(arguments.output), config, decoder_config, *trained)
        return
    written = hf.source_dtype(source).name if arguments.dtype == "source" else arguments.dtype
    write_merged(Path(arguments.output), source, decoder_config, *trained, dtype=written)


def write_merged(
    folder: Path, source: Path, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, dtype: str, replace: bool = False,
) -> None:  # fmt: skip
    """The model with its adapter folded in, as a Hugging Face folder like `source`, proved before it gets its name."""
    from bidora_jax.models import adapters, hf, parity
    from bidora_jax.models.folders import staged

    expected = parity.probe_logits(config, adapter, base, direction, magnitude)
    with staged(folder, replace=replace) as fresh:
        merged = adapters.merge(adapter, base, direction, magnitude, dtype)
        hf.write_model(fresh, source, config, merged, dtype=dtype)
        del merged
        _prove("merged model", dtype, parity.verify_saved(fresh, expected))
    print(f"merged model written to {folder}")


def write_adapter(
    folder: Path, settings: Config, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, replace: bool = False,
) -> None:  # fmt: skip
    """The adapter as a PEFT folder, proved before it gets its name."""
    from bidora_jax.models import parity, peft
    from bidora_jax.models.folders import staged

    expected = parity.probe_logits(config, adapter, base, direction, magnitude)
    with staged(folder, replace=replace) as fresh:
        peft.write_adapter(fresh, adapter, settings.adapter, direction, magnitude, base_model_name=settings.model.path)
        _prove("adapter", "float32", parity.verify_adapter(fresh, config, base, expected))
    print(f"adapter written to {folder}")


def run_config(run: str) -> Config:
    """The configuration that a run folder was made with."""
    saved = Path(run) / "config.json"
    if not saved.is_file():
        raise InputError(f"{run} is not a run folder: {saved} does not exist; name the output_dir of a training run")
    return resolve(read(str(saved)))


def _prove(what: str, dtype: str, found: "Agreement") -> None:
    said = (f"largest logit difference to the trained model {found.largest:.2e} "
            f"(largest logit {found.scale:.3g}, {found.tolerance:.1e} allowed for {dtype})")  # fmt: skip
    if not found.holds:
        raise RunError(f"the {what} that was written is not the model that was trained: {said}; it was removed")
    print(f"{what} read back: {said}")


if __name__ == "__main__":
    command(main)
