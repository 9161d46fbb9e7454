"""Hands a finished run, or a model without an adapter, to llama.cpp and Ollama.

A GGUF file with the tokenizer as it is in training, and a Modelfile beside it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bidora_jax.errors import InputError, program
from bidora_jax.machine.files import read_json
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.models.formats.export import Trained
    from bidora_jax.models.formats.gguf_file import Quantize
    from bidora_jax.models.formats.gguf_tokenizer import Tokenizer, Written
    from bidora_jax.models.settings import ModelConfig


class Source(NamedTuple):
    """A model folder as llama.cpp can be told of it."""

    folder: Path
    config: "DecoderConfig"
    name: str
    """llama.cpp's architecture."""
    tokenizer: Any
    """As transformers loads it, which is how training used it."""
    told: "Tokenizer"
    written: "Written"


def export_run(
    run: Path,
    output: Path,
    *,
    format: Literal["gguf", "gguf-lora"],
    quantize: "Quantize" = "f16",
    merge_base: Literal["quantized", "original"] = "quantized",
    measure: bool = True,
) -> None:
    """Writes the run's merged model, or its LoRA alone, to the file `output`.

    `merge_base` says which weights of a quantised base get the update. `measure` compares losses and answers on the run's records.
    """
    from bidora_jax.models.formats import gguf_adapter, gguf_export
    from bidora_jax.runs import modelfile, yardstick

    gguf_export.check_output(output, modelfile.beside(output))
    source, trained = _opened(run, merge_base)
    ends = source.told.ends
    if format == "gguf":
        own = yardstick.read_or_say(run_config(str(run)), source.config) if measure else None
        model = gguf_export.of_run(source.name, trained, quantize)
        gguf_export.write_model(output, model, source.written, quantize)
        modelfile.write(modelfile.beside(output), output.name, source.tokenizer, ends)
        if own is not None:
            config = gguf_export.config_of(model)
            base = gguf_export.read_base(output, config, source.name)
            print("\n".join(own.measured(trained, None, base, {}, {}).lines))
        return
    gguf_adapter.write_adapter(output, source.name, trained)
    base = f"{source.folder.name}.gguf"
    modelfile.write(modelfile.beside(output), base, source.tokenizer, ends, adapter=output.name)
    print(f"it goes onto the file of {program('export')} --model {source.folder} --format gguf --output {base}")


def export_model(settings: "ModelConfig", output: Path, *, quantize: "Quantize") -> None:
    """Writes the model of `settings.path` without an adapter, which is what a GGUF adapter is put on."""
    from bidora_jax.models.formats import gguf_export, hf, hf_config, hf_head
    from bidora_jax.runs import modelfile

    gguf_export.check_output(output, modelfile.beside(output))
    folder = hf_config.resolve_folder(settings.path)
    if hf_head.is_classifier(folder):
        raise InputError(_classifier(folder))
    source = source_of(folder)
    base = hf.load(settings, folder, source.config, flag="--dtype")
    gguf_export.write_model(output, gguf_export.of_base(source.name, source.config, base), source.written, quantize)
    modelfile.write(modelfile.beside(output), output.name, source.tokenizer, source.told.ends)


def _opened(run: Path, merge_base: Literal["quantized", "original"]) -> "tuple[Source, Trained]":
    """What a run's base is for llama.cpp, which is asked before any weight is read, and the run's model."""
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.base import dtype_of
    from bidora_jax.models.formats import export, hf, hf_config, peft, peft_config
    from bidora_jax.runs import exporting, label_files

    config = run_config(str(run))
    folder, adapted = hf_config.resolve_folder(config.model.path), peft_config.meant(run)
    if label_files.read(adapted) is not None:
        raise InputError(_classifier(run))
    if merge_base == "original" and config.model.quantization == "none":
        raise InputError(exporting.no_original(config.model.path, hf.is_quantised(folder)))
    source = source_of(folder)
    adapter, direction, magnitude = peft.load_adapter(adapted, source.config)
    base = hf.load(config.model, folder, source.config)
    if merge_base == "original":
        base = hf.load_base(folder, source.config, hf.source_dtype(folder, dtype_of(base).name))
    return source, export.Trained(source.config, adapter, initial.prepare_base(base, adapter), direction, magnitude)


def source_of(folder: Path) -> Source:
    """InputError where llama.cpp can't compute the model of a folder, or cut its texts."""
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.models.formats import gguf_architecture, gguf_tokenizer, hf_config

    config = hf_config.read_decoder(folder)
    family = read_json(folder / "config.json", hf_config.NOT_A_MODEL)["model_type"]
    name, tokenizer = gguf_architecture.name_of(family, config), load_tokenizer(folder)
    told = _told(tokenizer, folder)
    return Source(folder, config, name, tokenizer, told, gguf_tokenizer.written(told, config.vocab_size))


def _told(tokenizer: Any, folder: Path) -> "Tokenizer":
    """The facts of a tokenizer that llama.cpp is told."""
    from bidora_jax.generation import conversation
    from bidora_jax.models.formats.gguf_tokenizer import Tokenizer

    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer in {folder} is not a fast one, whose steps llama.cpp can be told: put its tokenizer.json there"
        )
    before, after = _around(tokenizer, folder)
    template = tokenizer.chat_template
    return Tokenizer(
        steps=json.loads(tokenizer.backend_tokenizer.to_str()),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        unknown=tokenizer.unk_token_id,
        pad=tokenizer.pad_token_id,
        adds_bos=before,
        adds_eos=after,
        template=template if isinstance(template, str) or not template else tokenizer.get_chat_template(),
        ends=conversation.ends(folder, tokenizer),
    )


def _around(tokenizer: Any, folder: Path) -> tuple[bool, bool]:
    """Whether the tokenizer begins a text with its first token, and ends it with its last."""
    from bidora_jax.data.tokenizer import tokenize

    bare, whole = (tokenize(tokenizer, "a", add_special_tokens=added)["input_ids"] for added in (False, True))
    for before in ((), (tokenizer.bos_token_id,)):
        for after in ((), (tokenizer.eos_token_id,)):
            if [*before, *bare, *after] == whole:
                return bool(before), bool(after)
    raise InputError(
        f"the tokenizer in {folder} puts other tokens around a text than its first and its last (it makes {whole} of {bare}), and "
        "llama.cpp can be told of those two alone"
    )


def _classifier(folder: Path) -> str:
    return (
        f"{folder} holds a classifier, and a GGUF file a decoder that writes text: use --format merged, which "
        "transformers reads"
    )
