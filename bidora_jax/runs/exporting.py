"""Hands a finished run on as a merged model, a PEFT adapter or a plain LoRA, and uploads what was written with a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bidora_jax.errors import InputError
from bidora_jax.models.formats import peft_config
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from bidora_jax.models.formats.export import Trained
    from bidora_jax.runs.yardstick import Yardstick

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
    measure: bool = True,
) -> list[str]:
    """Loads the run's base and adapter and writes them to `output`; returns how far what was written is from what was trained, in
    lines for the model card.

    `rank` and `max_error` are those of models/formats/export.py:write_lora, `dtype` that of the merged weights, where
    "source" keeps the one of the base's files, and "half" is float16 where that has the range, else bfloat16. `merge_base` says
    which weights of a quantised base get the update. `measure` compares losses and answers on the run's records.
    """
    from bidora_jax.generation import conversation
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.formats import export, hf, hf_config, peft
    from bidora_jax.runs import label_files, yardstick

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
    written = hf.source_dtype(source, config.model.dtype).name if dtype == "source" else dtype
    written = export.half_of(trained) if written == "half" else written
    compared = yardstick.read_or_say(config, architecture) if measure else None
    notes: list[str] = []
    if format == "lora":
        judge = compared.judge(trained) if compared is not None and rank == 0 else None
        said = export.write_lora(output, config.model.path, trained, rank=rank, max_error=max_error, judge=judge)
        notes = [f"A plain LoRA only comes near to the trained adapter: {said}."] if said else []
    elif format == "adapter":
        export.write_adapter(output, peft_config.read(folder), config.model.path, trained)
    else:
        ends = conversation.ends_of_folder(source) if labels is None else ()
        if quantised:
            export.write_merged_over(merge_base, output, source, trained, dtype=written, ends=ends)
        else:
            export.write_merged(output, source, trained, dtype=written, ends=ends)
    return notes if compared is None else [*notes, *compare(compared, trained, output, format)]


def compare(yardstick: "Yardstick", trained: "Trained", folder: Path, format: Format) -> list[str]:
    """Prints and returns how a folder that was written of a run does on the run's records."""
    from bidora_jax.models.formats import hf, hf_config, peft

    if format == "merged":
        adapter, base = (None, {}, {}), hf.load_base(folder, hf_config.read_decoder(folder))
    else:
        adapter, base = peft.load_adapter(folder, trained.config), trained.base
    lines = yardstick.measured(trained, adapter[0], base, *adapter[1:]).lines
    print("\n".join(lines))
    return lines


def no_original(model: str, in_files: bool) -> str:
    """Why there are no other weights that an update could be added to."""
    if in_files:
        return f"--merge-base original needs the 16-bit weights, and {model} holds quantised ones"
    return "--merge-base is for runs on a quantised base; this one was trained on the weights as they are"


def upload(run: Path, folder: Path, repository: str, *, format: Format, notes: Sequence[str], public: bool) -> None:
    """Uploads `folder`, which export_run wrote of `run`, with a card that says what it is and has the `notes` of export_run."""
    from bidora_jax.machine.files import read_json, write_json
    from bidora_jax.models.formats import hub

    settings = folder / peft_config.CONFIG
    if settings.is_file():  # a path on this machine is nobody's business
        given = read_json(settings, peft_config.NOT_AN_ADAPTER)
        base = given.get("base_model_name_or_path")
        if base and Path(base).expanduser().is_dir():
            write_json(settings, given | {"base_model_name_or_path": Path(base).name}, sort_keys=True)
    hub.write_card(folder, card(run, repository, format=format, notes=notes))
    print(f"uploaded to {hub.push(folder, repository, public=public)}")


def card(run: Path, repository: str, *, format: Format, notes: Sequence[str]) -> str:
    """The model card, with a paragraph for each of the `notes`. Of a base that is a folder it gives the last name alone: paths are
    private."""
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
        *notes,
    )
    library = "transformers" if format == "merged" else "peft"
    tags = (config.adapter.method, "bidora_jax")
    return hub.card(repository.split("/")[1], library=library, base=base, tags=tags, paragraphs=paragraphs)
