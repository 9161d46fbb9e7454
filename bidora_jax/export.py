"""python -m bidora_jax.export --run DIR --format merged|adapter --output DIR [--dtype float32|bfloat16]
python -m bidora_jax.export --model DIR --quantization nf4|int8|none --output DIR

Hands a finished run back to the rest of the world: a Hugging Face model folder with the adapter folded in, or a PEFT
adapter. Or, without a run, writes a model quantised as bitsandbytes does it, or a quantised one dense. What was written
is read back, and its logits must be those of the model in memory before the folder gets its name.

Of a run on a quantised base there are two merged models. `--merge-base quantized` adds the update to the dequantised
weights, which is the model that was trained; `original` adds it to the 16-bit weights, which it was not trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bidora_jax.config import Config, read, resolve
from bidora_jax.errors import InputError, RunError, command
from bidora_jax.models.settings import AdapterConfig, ModelConfig

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters import Adapter
    from bidora_jax.models.decoder import DecoderConfig
    from bidora_jax.models.parity import Agreement


@dataclass(frozen=True)
class ExportArguments:
    """Write the result of a run as a merged model or as a PEFT adapter, or a model quantised."""

    output: str
    """Folder to write; it must be new or empty."""
    run: str = ""
    """Folder of a finished run."""
    model: str = ""
    """Instead of a run: a model folder, or the name of a model on the Hugging Face hub."""
    format: Literal["merged", "adapter"] = "merged"
    """merged: a Hugging Face model folder; adapter: a PEFT folder."""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    """dtype of the merged weights; source keeps that of the base's files."""
    merge_base: Literal["quantized", "original"] = "quantized"
    """Of a run on a quantised base: the weights that the update is added to."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """With --model: the form to write the linear layers in; none writes a quantised folder dense."""
    double_quant: bool = True
    """nf4: write the block scales in 8 bits too."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ExportArguments, args=argv, prog="python -m bidora_jax.export")
    if bool(arguments.run) == bool(arguments.model):
        raise InputError("give either --run, a finished run, or --model, a model without an adapter")
    if arguments.model:
        export_model(arguments)
    else:
        export_run(arguments)


def export_run(arguments: ExportArguments) -> None:
    """Loads the run's base and adapter and writes them in the format asked for."""
    from bidora_jax.models import adapters, hf, peft, peft_config

    run, config = Path(arguments.run), run_config(arguments.run)
    if not (run / "adapter").is_dir():
        raise InputError(
            f"{run} has no adapter/: the run is not finished; go on with train --config {run}/config.json --resume"
        )
    if arguments.format == "adapter" and arguments.dtype != "source":
        raise InputError("--dtype is for --format merged; adapters are float32, as PEFT writes them")
    if arguments.quantization != "none":
        raise InputError("--quantization is for --model; merge the run first, then export the merged folder")
    source = hf.resolve_folder(config.model.path)
    decoder_config = hf.read_config(source)
    quantised = config.model.quantization != "none"
    if arguments.merge_base == "original" and not quantised:
        raise InputError(_no_original(config, hf.is_quantised(source)))
    adapter, direction, magnitude = peft.load_adapter(run / "adapter", decoder_config)
    base = adapters.prepare_base(hf.load(config.model, source, decoder_config), adapter)
    trained = (adapter, base, direction, magnitude)
    if arguments.format == "adapter":
        settings = peft_config.read(run / "adapter")
        write_adapter(Path(arguments.output), settings, config.model.path, decoder_config, *trained)
        return
    written = hf.source_dtype(source).name if arguments.dtype == "source" else arguments.dtype
    if quantised:
        _write_either(arguments, source, decoder_config, *trained, dtype=written)
    else:
        write_merged(Path(arguments.output), source, decoder_config, *trained, dtype=written)


def _no_original(config: Config, in_files: bool) -> str:
    if in_files:
        return f"--merge-base original needs the 16-bit weights, and {config.model.path} holds quantised ones"
    return "--merge-base is for runs on a quantised base; this one was trained on the weights as they are"


def _write_either(
    arguments: ExportArguments, source: Path, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, dtype: str,
) -> None:  # fmt: skip
    """The merged model over the base chosen; says of both how far they are from the model that was trained."""
    from bidora_jax.models import adapters, hf, parity

    trained = parity.probe_logits(config, adapter, base, direction, magnitude)
    chosen = base
    for name in sorted(("quantized", "original"), key=lambda name: name == arguments.merge_base):  # the chosen one last
        chosen = base if name == "quantized" else adapters.prepare_base(hf.load_base(source, config), adapter)
        merged = _merged(adapter, chosen, direction, magnitude, dtype)
        found = parity.compare(parity.probe_logits(config, None, merged, {}, {}), trained, dtype)
        del merged
        print(f"update over the {name} weights: largest logit difference to the trained model {found.largest:.2e} "
              f"(largest logit {found.scale:.3g})")  # fmt: skip
    to = "trained model" if arguments.merge_base == "quantized" else "update over the original weights"
    write_merged(Path(arguments.output), source, config, adapter, chosen, direction, magnitude, dtype=dtype, to=to)


def _merged(adapter: "Adapter", base: "PyTree", direction: "PyTree", magnitude: "PyTree", dtype: str) -> "PyTree":
    """The dense model with the adapter folded in."""
    from bidora_jax.models import adapters

    return adapters.dequantise(adapters.merge(adapter, base, direction, magnitude, dtype), dtype)


def export_model(arguments: ExportArguments) -> None:
    """Writes a model quantised as bitsandbytes does it, or a quantised one dense."""
    from bidora_jax.models import adapters, hf, parity
    from bidora_jax.models.folders import staged

    if arguments.format == "adapter" or arguments.merge_base != "quantized":
        raise InputError("--format and --merge-base are for --run; a model without an adapter has neither")
    source = hf.resolve_folder(arguments.model)
    config = hf.read_config(source)
    settings = ModelConfig(
        dtype="auto" if arguments.dtype == "source" else arguments.dtype,
        quantization=arguments.quantization, double_quant=arguments.double_quant,
    )  # fmt: skip
    base = hf.load(settings, source, config)
    dtype = base["norm"]["weight"].dtype.name
    base = adapters.dequantise(base) if settings.quantization == "none" else base
    expected = parity.probe_logits(config, None, base, {}, {})
    with staged(Path(arguments.output)) as fresh:
        hf.write_model(fresh, source, config, base, dtype=dtype)
        del base
        _prove("model", "model in memory", dtype, parity.verify_saved(fresh, expected))
    print(f"model written to {arguments.output}")


def write_merged(
    folder: Path, source: Path, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, dtype: str, replace: bool = False, to: str = "trained model",
) -> None:  # fmt: skip
    """The model with its adapter folded in, as a Hugging Face folder like `source`, proved before it gets its name.

    Always dense: a quantised base is dequantised. `to` says what the proof compares with.
    """
    from bidora_jax.models import hf, parity
    from bidora_jax.models.folders import staged

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
    from bidora_jax.models import parity, peft
    from bidora_jax.models.conversion import converted
    from bidora_jax.models.folders import staged

    expected = parity.probe_logits(config, adapter, base, direction, magnitude)
    adapter, settings, direction = converted(adapter, settings, base, direction)
    with staged(folder, replace=replace) as fresh:
        peft.write_adapter(fresh, adapter, settings, direction, magnitude, base_model_name=base_model_name)
        _prove("adapter", "trained model", "float32", parity.verify_adapter(fresh, config, base, expected))
    print(f"adapter written to {folder}")


def run_config(run: str) -> Config:
    """The configuration that a run folder was made with."""
    saved = Path(run) / "config.json"
    if not saved.is_file():
        raise InputError(f"{run} is not a run folder: {saved} does not exist; name the output_dir of a training run")
    return resolve(read(str(saved)))


def _prove(what: str, to: str, dtype: str, found: "Agreement") -> None:
    said = (f"largest logit difference to the {to} {found.largest:.2e} "
            f"(largest logit {found.scale:.3g}, {found.tolerance:.1e} allowed for {dtype})")  # fmt: skip
    if not found.holds:
        raise RunError(f"the {what} that was written is not the {to}: {said}; it was removed")
    print(f"{what} read back: {said}")


if __name__ == "__main__":
    command(main)
