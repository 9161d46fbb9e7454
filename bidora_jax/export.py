"""python -m bidora_jax.export --run DIR --format merged|adapter|lora --output DIR [--dtype float32|bfloat16] [--rank R]
python -m bidora_jax.export --run DIR --format … --output DIR --push ORG/NAME [--public]
python -m bidora_jax.export --run DIR --format gguf --output FILE.gguf [--quantize f16|bf16|q8_0|f32]
python -m bidora_jax.export --model DIR --quantization nf4|int8|none --output DIR
python -m bidora_jax.export --model DIR --format gguf --output FILE.gguf

Writes a finished run for other programs: a Hugging Face model folder with the adapter folded in, or a PEFT adapter. Or,
without a run, writes a model quantised as bitsandbytes does it, or a quantised one dense. The written files are read back,
and their logits must be those of the model in memory before the folder gets its name. --push uploads the folder to the
Hugging Face hub after that.

`--format lora` is for inference engines that read plain LoRA only: one rank, no patterns, no magnitude.
For a LoRA run it is exact (models/adapters/lora_approximation.py).
For DoRA and BiDoRA it can't be: W' − W0 = (m/‖V‖ − 1) ⊙ W0 + (m/‖V‖) ⊙ s·B·A has the full rank of W0.
The nearest LoRA of the rank is written then, and its error is printed; `--format merged` is off by rounding to its dtype alone.

A run on a quantised base has two merged models. `--merge-base quantized` adds the update to the dequantised
weights, which is the model that was trained; `original` adds it to the 16-bit weights, which it was not trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bidora_jax.errors import InputError, command, program
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs.exporting import export_run, upload


@dataclass(frozen=True)
class ExportArguments:
    """Write the result of a run as a merged model or as a PEFT adapter, or a model quantised."""

    output: str
    """Folder to write; it must be new or empty. gguf: the file, NAME.gguf."""
    run: str = ""
    """Folder of a finished run."""
    model: str = ""
    """Instead of a run: a model folder, or the name of a model on the Hugging Face hub."""
    format: Literal["merged", "adapter", "lora", "gguf", "gguf-lora"] = "merged"
    """merged: a Hugging Face model folder; adapter: a PEFT folder; lora: a PEFT folder that inference engines read too; gguf: the
    merged model as one file for llama.cpp and Ollama; gguf-lora: the adapter of a LoRA run for them."""
    rank: int = 0
    """lora: the rank to write. 0 takes that of a LoRA run, and for the others the first of 8, 16, 32, 64, 128, 256 within
    max_error."""
    max_error: float = 0.1
    """lora without a rank, where it isn't exact: largest share that may be lost of what training gained in validation loss, or with
    --no-measure, and for a run without validation, of W' − W0 in the Frobenius norm."""
    dtype: Literal["source", "half", "float32", "bfloat16", "float16"] = "source"
    """dtype of the merged weights; source keeps that of the base's files. half is float16, which has three bits more than bfloat16,
    where all weights fit its range, else bfloat16."""
    quantize: Literal["f16", "bf16", "q8_0", "f32"] = "f16"
    """gguf: the type of its matrices, which are rounded from float32."""
    merge_base: Literal["quantized", "original"] = "quantized"
    """Of a run on a quantised base: the weights that the update is added to."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """With --model: the form to write the linear layers in; none writes a quantised folder dense."""
    double_quant: bool = True
    """nf4: write the block scales in 8 bits too."""
    measure: bool = True
    """With --run: score the base, the adapter and what is written on the run's records, and compare greedy answers."""
    push: str = ""
    """Also upload the folder to this repository of the Hugging Face hub, ORG/NAME, with a model card."""
    public: bool = False
    """Make that repository public; without it a new one is private."""

    def as_model(self) -> ModelConfig:
        """How the model of --model is opened."""
        return ModelConfig(
            path=self.model, dtype="auto" if self.dtype in ("source", "half") else self.dtype, quantization=self.quantization,
            double_quant=self.double_quant,
        )  # fmt: skip


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ExportArguments, args=argv, prog=program("export"))
    if bool(arguments.run) == bool(arguments.model):
        raise InputError("give either --run, a finished run, or --model, a model without an adapter")
    _check(arguments)
    output, run = Path(arguments.output), Path(arguments.run)
    if arguments.format in ("gguf", "gguf-lora"):
        _write_gguf(arguments, run, output)
        return
    if arguments.model:
        from bidora_jax.models.formats import export

        export.write_model(output, arguments.as_model())
        return
    notes = export_run(
        run, output, format=arguments.format, rank=arguments.rank, max_error=arguments.max_error, dtype=arguments.dtype,
        merge_base=arguments.merge_base, measure=arguments.measure,
    )  # fmt: skip
    if arguments.push:
        upload(run, output, arguments.push, format=arguments.format, notes=notes, public=arguments.public)


def _write_gguf(arguments: ExportArguments, run: Path, output: Path) -> None:
    from bidora_jax.runs import gguf_exporting

    quantize, merge_base = arguments.quantize, arguments.merge_base
    if arguments.model:
        gguf_exporting.export_model(arguments.as_model(), output, quantize=quantize)
    elif arguments.format == "gguf-lora":
        gguf_exporting.export_run(run, output, format="gguf-lora")
    else:
        gguf_exporting.export_run(
            run, output, format="gguf", quantize=quantize, merge_base=merge_base, measure=arguments.measure
        )


def _check(arguments: ExportArguments) -> None:
    """Refuses flags that belong to another call, all in one message, and an upload that can't succeed."""
    a = arguments
    lora = a.format == "lora" and not a.model
    checks = {
        f"--rank must be at least 1, found {a.rank}": a.rank < 0,
        f"--max-error must be at least 0 and below 1, found {a.max_error}": not 0 <= a.max_error < 1,
        "--rank and --max-error are for --run with --format lora": not lora and (a.rank, a.max_error) != (0, 0.1),
        "--rank is given, so nothing is chosen and --max-error has no say": bool(a.rank) and a.max_error != 0.1,
        "--merge-base is for --format merged: the others hold the update alone": not a.model
        and a.merge_base == "original"
        and a.format not in ("merged", "gguf"),
        "--public is for --push ORG/NAME": a.public and not a.push,
        "--push is for --run": bool(a.push and a.model),
        "--dtype is for --format merged; adapters are float32, as PEFT writes them, and gguf has --quantize": a.dtype
        != "source"
        and ((a.format != "merged" and not a.model) or a.format == "gguf"),
        "--dtype half is for --run": a.dtype == "half" and bool(a.model),
        "--quantize is for --format gguf": a.format != "gguf" and a.quantize != "f16",
        "--format gguf writes a file, and --push uploads folders: upload it with `hf upload`": a.format.startswith(
            "gguf"
        )
        and bool(a.push),
        "--quantization is for folders; a GGUF file has --quantize": a.format == "gguf" and a.quantization != "none",
        "--quantization is for --model; merge the run first, then export the merged folder": not a.model
        and a.quantization != "none",
        "--format and --merge-base are for --run; a model without an adapter is written as a folder, or with --format gguf": bool(
            a.model
        )
        and (a.format not in ("merged", "gguf") or a.merge_base != "quantized"),
    }
    if wrong := [message for message, found in checks.items() if found]:
        raise InputError("\n".join(wrong))
    if a.push:
        from bidora_jax.models.formats import hub

        hub.check(a.push)


if __name__ == "__main__":
    command(main)
