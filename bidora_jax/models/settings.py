"""Settings of the model and of the adapter: what `model.*` and `adapter.*` mean in a configuration."""

from dataclasses import dataclass
from typing import Literal

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    path: str = ""
    """Folder with config.json, safetensors and tokenizer, or the name of a model on the Hugging Face hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen weights and of the products; auto keeps the dtype of the files."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """int8: 8 bits a weight, nf4: 4 bits, both as bitsandbytes; a folder that bitsandbytes quantised is read as it is."""
    double_quant: bool = True
    """nf4: keep the block scales in 8 bits too (4.13 bits a weight instead of 4.5)."""
    quantized_modules: tuple[str, ...] = LINEARS
    """Modules to quantise by name; 'all-linear' stands for the seven of a layer, lm_head and embed_tokens can be added."""
    remat: Literal["layer", "dots", "none"] = "layer"
    """layer: keep one activation a layer and recompute the rest in the backward pass; dots: keep the products with the
    frozen weights too, recompute what is cheap; none: keep all."""
    attention_chunk: int = 512
    """Queries attended at a time; longer sequences never hold a [T, T] score matrix."""
    loss_chunk: int = 256
    """Tokens whose logits exist at a time in the loss."""


@dataclass(frozen=True)
class AdapterConfig:
    """The trained part. Names and meaning follow PEFT."""

    method: Literal["lora", "dora", "bidora"] = "bidora"
    """lora: direction only; dora: direction and magnitude on one level; bidora: magnitude on the validation split."""
    rank: int = 8
    """Rank r of the update B·A."""
    alpha: float = 16.0
    """Scale numerator: the update is multiplied by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    init: str = "kaiming"
    """Start of the factors. kaiming: A uniform, B zero (PEFT's True); gaussian: A normal, B zero."""
    dropout: float = 0.0
    """Probability of dropping an input of A, in training on the direction only."""
    target_modules: tuple[str, ...] | str = LINEARS
    """Linear layers to adapt: names or endings of module names; 'all-linear' stands for all of them. A lone text, or a
    single entry with a character that no name has, is a regular expression for the whole name (model.layers.0.mlp.up_proj)."""
    exclude_modules: tuple[str, ...] | str = ()
    """Modules to leave out of target_modules, by the same rules."""
    layers_to_transform: tuple[int, ...] = ()
    """Numbers of the decoder layers to adapt; none means all. A layer that is left out is exactly the frozen one."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Other ranks, {PATTERN: RANK}: the first pattern that is, as a regular expression, the end of a module's name after a
    dot decides; 0 leaves the module out. On the command line: PATTERN RANK PATTERN RANK …"""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """Other alphas, by the same rule."""
    norm: Literal["auto", "constant", "differentiated"] = "auto"
    """Whether the row norm takes part in the direction's gradient. auto: constant for dora (DoRA section 4.3, as
    PEFT), differentiated for bidora. The outer loss of bidora always differentiates it."""
