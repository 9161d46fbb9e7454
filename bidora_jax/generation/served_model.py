"""Opens a model with its adapters once, for generate, chat and evaluate.

The cheap refusals come first: config.json, tokenizer and adapters are read before any weight of the model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bidora_jax.errors import InputError, program
from bidora_jax.models.architectures.decoder import LINEARS
from bidora_jax.models.settings import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.generation.ensembles import Combine, Member
    from bidora_jax.models.architectures.decoder import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which model answers, with which adapters, in which form."""

    run: str = ""
    """Folder of a finished run: its base model, in the form that it was trained in, with its adapter."""
    model: str = ""
    """Instead of a run: a model folder, or the name of a model on the Hugging Face hub."""
    adapter: tuple[str, ...] = ()
    """PEFT adapter folder or run folder, or NAME=DIR; repeat it for several, which answer in turn."""
    ensemble: Literal["none", "logits", "probabilities"] = "none"
    """Let several adapters answer as one, by the mean of what they predict: of their logits or of their probabilities."""
    average: bool = False
    """Let several adapters answer as one, by the mean of their merged weights."""
    weight: tuple[float, ...] = ()
    """Share of an adapter in --average; repeat it, one for each adapter. Equal shares without it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers that the weights are held and multiplied in; auto keeps those of the files."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Hold the linear layers in fewer bits, 8 or 4; a folder that bitsandbytes quantised is read as it is."""
    double_quant: bool = True
    """nf4: keep the block scales in 8 bits too."""
    quantized_modules: tuple[str, ...] = ()
    """Module to quantise, by its name; repeat it for several. Without it, all linear layers."""

    compilation_cache: str = "auto"
    """Folder where compiled programs are kept for later calls; auto: the user's cache folder, empty: nowhere."""

    @property
    def combine(self) -> "Combine | None":
        """What of several adapters is averaged in their outputs, or None."""
        return None if self.ensemble == "none" else self.ensemble

    @property
    def settings(self) -> ModelConfig:
        return ModelConfig(
            dtype=self.dtype, quantization=self.quantization, double_quant=self.double_quant,
            quantized_modules=self.quantized_modules or LINEARS,
        )  # fmt: skip


class Opened(NamedTuple):
    """All of a model but its weights."""

    folder: Path
    config: "DecoderConfig"
    tokenizer: Any
    members: "dict[str, Member]"
    """Adapters by name."""


def open_folder(served: Served) -> Opened:
    """Reads config.json, tokenizer and adapters. InputError for what can't be read or does not go together.

    From here on, compiled programs are kept: JAX looks once whether they are to be, when it compiles its first one.
    """
    from bidora_jax.data.tokenizer import folder_with_adapters, load_tokenizer
    from bidora_jax.generation import ensembles
    from bidora_jax.machine.compile_cache import keep_compiled
    from bidora_jax.models.formats import hf_config

    keep_compiled(served.compilation_cache)
    folder = hf_config.resolve_folder(served.model)
    config = hf_config.read_decoder(folder)
    members = ensembles.load(served.adapter, config)
    if labelling := [name for name, member in members.items() if member.adapter.head is not None]:
        raise InputError(f"{', '.join(labelling)} labels texts and writes none: see {program('predict')} --help")
    ensembles.check(members, served.combine, served.average, served.weight)
    of_tokenizer = folder_with_adapters(folder, map(Path, ensembles.folders(served.adapter)))
    if of_tokenizer != folder:
        print(f"tokenizer and chat template are those of the adapter in {of_tokenizer}", file=sys.stderr)
    return Opened(folder, config, load_tokenizer(of_tokenizer), members)


def load_weights(served: Served, opened: Opened) -> "tuple[PyTree, dict[str, Member | None]]":
    """The base, and what answers on it by name: adapters in the form for inference, or None for the model itself."""
    from bidora_jax.generation import ensembles
    from bidora_jax.models.formats import hf

    base = hf.load(served.settings, opened.folder, opened.config, flag="--dtype")
    base, chosen = ensembles.for_serving(base, opened.members, served.combine, served.average, served.weight)
    return base, dict(chosen) or {"": None}
