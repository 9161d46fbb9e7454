"""python -m bidora_jax.export --run DIR --format merged|adapter|lora --output DIR [--dtype float32|bfloat16] [--rank R]
python -m bidora_jax.export --run DIR --format … --output DIR --push ORG/NAME [--public]
python -m bidora_jax.export --model DIR --quantization nf4|int8|none --output DIR

Hands a finished run back to the rest of the world: a Hugging Face model folder with the adapter folded in, or a PEFT
adapter. Or, without a run, writes a model quantised as bitsandbytes does it, or a quantised one dense. What was written
is read back, and its logits must be those of the model in memory before the folder gets its name. --push uploads the folder
to the Hugging Face hub after that.

`--format lora` is for inference engines, which read plain LoRA alone: one rank, no patterns, no magnitude.
Of a LoRA run it is exact (models/adapters/lora_approximation.py).
Of DoRA and BiDoRA it can't be: W' − W0 = (m/‖V‖ − 1) ⊙ W0 + (m/‖V‖) ⊙ s·B·A has all of W0's rank.
The nearest LoRA of the rank is written then, and the error that it leaves is printed; `--format merged` has none.

Of a run on a quantised base there are two merged models. `--merge-base quantized` adds the update to the dequantised
weights, which is the model that was trained; `original` adds it to the 16-bit weights, which it was not trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bidora_jax.config import Config
from bidora_jax.errors import InputError, command, program
from bidora_jax.models.formats import peft_config
from bidora_jax.models.formats.export import (
    _merged,
    _prove,
    write_adapter,
    write_lora,
    write_merged,
)
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.decoder import DecoderConfig


@dataclass(frozen=True)
class ExportArguments:
    """Write the result of a run as a merged model or as a PEFT adapter, or a model quantised."""

    output: str
    """Folder to write; it must be new or empty."""
    run: str = ""
    """Folder of a finished run."""
    model: str = ""
    """Instead of a run: a model folder, or the name of a model on the Hugging Face hub."""
    format: Literal["merged", "adapter", "lora"] = "merged"
    """merged: a Hugging Face model folder; adapter: a PEFT folder; lora: a PEFT folder that inference engines read too."""
    rank: int = 0
    """lora: the rank to write. 0 takes that of a LoRA run, and for the others the first of 8, 16, 32, 64, 128, 256 within
    max_error."""
    max_error: float = 0.1
    """lora without a rank, where it isn't exact: largest share of W' − W0 that may be lost, in the Frobenius norm."""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    """dtype of the merged weights; source keeps that of the base's files."""
    merge_base: Literal["quantized", "original"] = "quantized"
    """Of a run on a quantised base: the weights that the update is added to."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """With --model: the form to write the linear layers in; none writes a quantised folder dense."""
    double_quant: bool = True
    """nf4: write the block scales in 8 bits too."""
    push: str = ""
    """Also upload the folder to this repository of the Hugging Face hub, ORG/NAME, with a model card."""
    public: bool = False
    """Make that repository public; without it a new one is private."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ExportArguments, args=argv, prog=program("export"))
    if bool(arguments.run) == bool(arguments.model):
        raise InputError("give either --run, a finished run, or --model, a model without an adapter")
    _check(arguments)
    if arguments.model:
        export_model(arguments)
        return
    note = export_run(arguments)
    if arguments.push:
        _push(arguments, note)


def _check(arguments: ExportArguments) -> None:
    """Flags that belong to another call, all at once; and what an upload needs."""
    a = arguments
    lora = a.format == "lora" and not a.model
    checks = {
        f"--rank must be at least 1, found {a.rank}": a.rank < 0,
        f"--max-error must be at least 0 and below 1, found {a.max_error}": not 0 <= a.max_error < 1,
        "--rank and --max-error are for --run with --format lora": not lora and (a.rank, a.max_error) != (0, 0.1),
        "--rank is given, so nothing is chosen and --max-error has no say": bool(a.rank) and a.max_error != 0.1,
        "--merge-base is for --format merged: the others hold the update alone": not a.model
        and (a.format, a.merge_base) in (("lora", "original"), ("adapter", "original")),
        "--public is for --push ORG/NAME": a.public and not a.push,
        "--push is for --run": bool(a.push and a.model),
    }
    if wrong := [message for message, found in checks.items() if found]:
        raise InputError("\n".join(wrong))
    if a.push:
        from bidora_jax.models.formats import hub

        hub.check(a.push)


def export_run(arguments: ExportArguments) -> str:
    """Loads the run's base and adapter and writes them in the format asked for; returns what is inexact in that."""
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.formats import hf, hf_config, peft

    run, config = Path(arguments.run), run_config(arguments.run)
    if not (run / "adapter").is_dir():
        raise InputError(
            f"{run} has no adapter/: the run is not finished; go on with train --config {run}/config.json --resume"
        )
    if arguments.format != "merged" and arguments.dtype != "source":
        raise InputError("--dtype is for --format merged; adapters are float32, as PEFT writes them")
    if arguments.quantization != "none":
        raise InputError("--quantization is for --model; merge the run first, then export the merged folder")
    source = hf_config.resolve_folder(config.model.path)
    decoder_config = hf_config.read_config(source)
    quantised = config.model.quantization != "none"
    if arguments.merge_base == "original" and not quantised:
        raise InputError(_no_original(config, hf.is_quantised(source)))
    adapter, direction, magnitude = peft.load_adapter(run / "adapter", decoder_config)
    base = initial.prepare_base(hf.load(config.model, source, decoder_config), adapter)
    trained = (adapter, base, direction, magnitude)
    if arguments.format == "lora":
        limits = {"rank": arguments.rank, "max_error": arguments.max_error}
        return write_lora(Path(arguments.output), config.model.path, decoder_config, *trained, **limits)
    if arguments.format == "adapter":
        settings = peft_config.read(run / "adapter")
        write_adapter(Path(arguments.output), settings, config.model.path, decoder_config, *trained)
        return ""
    written = hf.source_dtype(source).name if arguments.dtype == "source" else arguments.dtype
    if quantised:
        _write_either(arguments, source, decoder_config, *trained, dtype=written)
    else:
        write_merged(Path(arguments.output), source, decoder_config, *trained, dtype=written)
    return ""


def _no_original(config: Config, in_files: bool) -> str:
    if in_files:
        return f"--merge-base original needs the 16-bit weights, and {config.model.path} holds quantised ones"
    return "--merge-base is for runs on a quantised base; this one was trained on the weights as they are"


def _write_either(
    arguments: ExportArguments, source: Path, config: "DecoderConfig", adapter: "Adapter", base: "PyTree",
    direction: "PyTree", magnitude: "PyTree", *, dtype: str,
) -> None:  # fmt: skip
    """The merged model over the base chosen; says of both how far they are from the model that was trained."""
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.formats import hf, parity

    trained = parity.probe_logits(config, adapter, base, direction, magnitude)
    chosen = base
    for name in sorted(("quantized", "original"), key=lambda name: name == arguments.merge_base):  # the chosen one last
        chosen = base if name == "quantized" else initial.prepare_base(hf.load_base(source, config), adapter)
        merged = _merged(adapter, chosen, direction, magnitude, dtype)
        found = parity.compare(parity.probe_logits(config, None, merged, {}, {}), trained, dtype)
        del merged
        print(f"update over the {name} weights: largest logit difference to the trained model {found.largest:.2e} "
              f"(largest logit {found.scale:.3g})")  # fmt: skip
    to = "trained model" if arguments.merge_base == "quantized" else "update over the original weights"
    write_merged(Path(arguments.output), source, config, adapter, chosen, direction, magnitude, dtype=dtype, to=to)


def export_model(arguments: ExportArguments) -> None:
    """Writes a model quantised as bitsandbytes does it, or a quantised one dense."""
    from bidora_jax.machine.files import staged
    from bidora_jax.models.adapters import merging
    from bidora_jax.models.base import dtype_of
    from bidora_jax.models.formats import hf, hf_config, parity

    if arguments.format != "merged" or arguments.merge_base != "quantized":
        raise InputError("--format and --merge-base are for --run; a model without an adapter has neither")
    source = hf_config.resolve_folder(arguments.model)
    config = hf_config.read_config(source)
    settings = ModelConfig(
        dtype="auto" if arguments.dtype == "source" else arguments.dtype,
        quantization=arguments.quantization, double_quant=arguments.double_quant,
    )  # fmt: skip
    base = hf.load(settings, source, config)
    dtype = dtype_of(base).name
    base = merging.dequantise(base) if settings.quantization == "none" else base
    expected = parity.probe_logits(config, None, base, {}, {})
    with staged(Path(arguments.output)) as fresh:
        hf.write_model(fresh, source, config, base, dtype=dtype)
        del base
        _prove("model", "model in memory", dtype, parity.verify_saved(fresh, expected))
    print(f"model written to {arguments.output}")


def _push(arguments: ExportArguments, note: str) -> None:
    """Uploads the folder that was written, with a card that says what it is."""
    from bidora_jax.models.formats import hub

    folder = Path(arguments.output)
    hub.write_card(folder, _card(arguments, note))
    print(f"uploaded to {hub.push(folder, arguments.push, public=arguments.public)}")


def _card(arguments: ExportArguments, note: str) -> str:
    """The model card; `note` is what is inexact. Of a base that is a folder it gives the last name alone: paths are private."""
    from bidora_jax import __version__
    from bidora_jax.models.formats import hub

    config, settings = run_config(arguments.run), peft_config.read(Path(arguments.run) / "adapter")
    base = config.model.path
    method = {"lora": "LoRA", "dora": "DoRA", "bidora": "BiDoRA"}[config.adapter.method]
    kind = {"merged": "the merged model", "adapter": "a PEFT adapter", "lora": "a plain LoRA"}[arguments.format]
    modules = settings.target_modules
    modules = modules if isinstance(modules, str) else ", ".join(modules)
    said = (
        f"`{Path(base).name if Path(base).is_dir() else base}` fine-tuned with {method} by bidora_jax {__version__}: {kind}. "
        f"Trained with rank {settings.rank}, alpha {settings.alpha:g}{', rsLoRA' if settings.rslora else ''} on {modules}.",
        *([f"A plain LoRA only comes near to the trained adapter: {note}."] if note else []),
    )
    library = "transformers" if arguments.format == "merged" else "peft"
    tags = (config.adapter.method, "bidora_jax")
    return hub.card(arguments.push.split("/")[1], library=library, base=base, tags=tags, paragraphs=said)


if __name__ == "__main__":
    command(main)
