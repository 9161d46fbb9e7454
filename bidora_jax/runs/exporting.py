"""Hands a finished run on as a merged model, a PEFT adapter or a plain LoRA, and uploads what was written with a model card."""

from pathlib import Path
from typing import Literal

from bidora_jax.errors import InputError
from bidora_jax.models.formats import peft_config
from bidora_jax.runs.folder import run_config

Format = Literal["merged", "adapter", "lora"]


def export_run(
    run: Path,
    output: Path,
    *,
    format: Format,
    rank: int = 0,
    max_error: float = 0.1,
    dtype: str = "source",
    merge_base: Literal["quantized", "original"] = "quantized",
) -> str:
    """Loads the run's base and adapter and writes them to `output`; returns what is inexact in what was written.

    `rank` and `max_error` are those of models/formats/export.py:write_lora, `dtype` that of the merged weights, where
    "source" keeps the one of the base's files. `merge_base` says which weights of a quantised base get the update.
    """
    from bidora_jax.generation import conversation
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.formats import export, hf, hf_config, peft
    from bidora_jax.runs import label_files

    config = run_config(str(run))
    folder = peft_config.meant(run)
    source = hf_config.resolve_folder(config.model.path)
    labels = label_files.read(folder)
    architecture = hf_config.read_decoder(source) if labels is None else hf_config.read_config(source).without_output()
    quantised = config.model.quantization != "none"
    if merge_base == "original" and not quantised:
        raise InputError(no_original(config.model.path, hf.is_quantised(source)))
    adapter, direction, magnitude = peft.load_adapter(folder, architecture)
    base = initial.prepare_base(hf.load(config.model, source, architecture), adapter)
    trained = export.Trained(architecture, adapter, base, direction, magnitude)
    if labels is not None:
        trained = label_files.completed(trained, labels, source)
    if format == "lora":
        return export.write_lora(output, config.model.path, trained, rank=rank, max_error=max_error)
    if format == "adapter":
        export.write_adapter(output, peft_config.read(folder), config.model.path, trained)
        return ""
    written = hf.source_dtype(source, config.model.dtype).name if dtype == "source" else dtype
    ends = conversation.ends_of_folder(source) if labels is None else ()
    if quantised:
        export.write_merged_over(merge_base, output, source, trained, dtype=written, ends=ends)
    else:
        export.write_merged(output, source, trained, dtype=written, ends=ends)
    return ""


def no_original(model: str, in_files: bool) -> str:
    """Why there are no other weights that an update could be added to."""
    if in_files:
        return f"--merge-base original needs the 16-bit weights, and {model} holds quantised ones"
    return "--merge-base is for runs on a quantised base; this one was trained on the weights as they are"


def upload(run: Path, folder: Path, repository: str, *, format: Format, note: str, public: bool) -> None:
    """Uploads `folder`, which export_run wrote of `run`, with a card that says what it is; `note` is what is inexact."""
    from bidora_jax.models.formats import hub

    hub.write_card(folder, card(run, repository, format=format, note=note))
    print(f"uploaded to {hub.push(folder, repository, public=public)}")


def card(run: Path, repository: str, *, format: Format, note: str) -> str:
    """The model card; `note` is what is inexact. Of a base that is a folder it gives the last name alone: paths are private."""
    from bidora_jax.machine.version import __version__
    from bidora_jax.models.formats import hub

    config, settings = run_config(str(run)), peft_config.read(run / "adapter")
    base = config.model.path
    method = {"lora": "LoRA", "dora": "DoRA", "bidora": "BiDoRA"}[config.adapter.method]
    kind = {"merged": "the merged model", "adapter": "a PEFT adapter", "lora": "a plain LoRA"}[format]
    modules = settings.target_modules
    modules = modules if isinstance(modules, str) else ", ".join(modules)
    paragraphs = (
        f"`{Path(base).name if Path(base).is_dir() else base}` fine-tuned with {method} by bidora_jax {__version__}: {kind}. "
        f"Trained with rank {settings.rank}, alpha {settings.alpha:g}{', rsLoRA' if settings.rslora else ''} on {modules}.",
        *([f"A plain LoRA only comes near to the trained adapter: {note}."] if note else []),
    )
    library = "transformers" if format == "merged" else "peft"
    tags = (config.adapter.method, "bidora_jax")
    return hub.card(repository.split("/")[1], library=library, base=base, tags=tags, paragraphs=paragraphs)
