"""Hands a finished run, or a model without an adapter, to llama.cpp: a GGUF file with the tokenizer as it is in training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bidora_jax.errors import InputError
from bidora_jax.machine.files import read_json
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.models.formats.gguf_file import Quantize
    from bidora_jax.models.formats.gguf_tokenizer import Tokenizer, Written
    from bidora_jax.models.settings import ModelConfig


def export_run(
    run: Path, output: Path, *, quantize: "Quantize", merge_base: Literal["quantized", "original"] = "quantized"
) -> None:
    """Writes the run's merged model to the file `output`. `merge_base` says which weights of a quantised base get the update."""
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.base import dtype_of
    from bidora_jax.models.formats import export, gguf_export, hf, hf_config, peft, peft_config
    from bidora_jax.runs import exporting, label_files

    gguf_export.check_output(output)
    config = run_config(str(run))
    source, folder = hf_config.resolve_folder(config.model.path), peft_config.meant(run)
    if label_files.read(folder) is not None:
        raise InputError(_classifier(run))
    if merge_base == "original" and config.model.quantization == "none":
        raise InputError(exporting.no_original(config.model.path, hf.is_quantised(source)))
    architecture, name, tokenizer = _expressed(source)
    adapter, direction, magnitude = peft.load_adapter(folder, architecture)
    base = hf.load(config.model, source, architecture)
    if merge_base == "original":
        base = hf.load_base(source, architecture, hf.source_dtype(source, dtype_of(base).name))
    trained = export.Trained(architecture, adapter, initial.prepare_base(base, adapter), direction, magnitude)
    gguf_export.write_model(output, gguf_export.of_run(name, trained), tokenizer, quantize)


def export_model(settings: "ModelConfig", output: Path, *, quantize: "Quantize") -> None:
    """Writes the model of `settings.path` without an adapter, which is what a GGUF adapter is put on."""
    from bidora_jax.models.formats import gguf_export, hf, hf_config, hf_head

    gguf_export.check_output(output)
    source = hf_config.resolve_folder(settings.path)
    if hf_head.is_classifier(source):
        raise InputError(_classifier(source))
    architecture, name, tokenizer = _expressed(source)
    base = hf.load(settings, source, architecture, flag="--dtype")
    gguf_export.write_model(output, gguf_export.of_base(name, architecture, base), tokenizer, quantize)


def _expressed(folder: Path) -> "tuple[DecoderConfig, str, Written]":
    """The architecture of a model folder, llama.cpp's name of it, and the keys of its tokenizer; InputError where it has no such."""
    from bidora_jax.models.formats import gguf_architecture, gguf_tokenizer, hf_config

    architecture = hf_config.read_decoder(folder)
    name = gguf_architecture.name_of(
        read_json(folder / "config.json", hf_config.NOT_A_MODEL)["model_type"], architecture
    )
    return architecture, name, gguf_tokenizer.written(tokenizer_of(folder), architecture.vocab_size)


def tokenizer_of(folder: Path) -> "Tokenizer":
    """The tokenizer of a model folder as transformers loads it, which is how training used it."""
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.generation import conversation
    from bidora_jax.models.formats.gguf_tokenizer import Tokenizer

    loaded = load_tokenizer(folder)
    if not loaded.is_fast:
        raise InputError(
            f"the tokenizer in {folder} is not a fast one, whose steps llama.cpp can be told: put its tokenizer.json there"
        )
    before, after = _around(loaded, folder)
    template = loaded.chat_template
    return Tokenizer(
        steps=json.loads(loaded.backend_tokenizer.to_str()),
        bos=loaded.bos_token_id,
        eos=loaded.eos_token_id,
        unknown=loaded.unk_token_id,
        pad=loaded.pad_token_id,
        adds_bos=before,
        adds_eos=after,
        template=template if isinstance(template, str) or not template else loaded.get_chat_template(),
        ends=conversation.ends(folder, loaded),
    )


def _classifier(folder: Path) -> str:
    return f"{folder} holds a classifier, and a GGUF file a decoder that writes text: use --format merged, which transformers reads"


def _around(tokenizer: Any, folder: Path) -> tuple[bool, bool]:
    """Whether the tokenizer begins a text with its first token, and ends it with its last."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for before in ((), (bos,)):
        for after in ((), (eos,)):
            if [*before, *bare, *after] == whole:
                return bool(before), bool(after)
    raise InputError(
        f"the tokenizer in {folder} puts other tokens around a text than its first and its last (it makes {whole} of {bare}), and "
        "llama.cpp can be told of those two alone"
    )
