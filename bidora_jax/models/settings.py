"""Settings of the model and of the adapter: what `model.*` and `adapter.*` mean in a configuration."""

from dataclasses import dataclass
from typing import Any, Literal

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


ATTENTION = LINEARS[:4]
_EFFICIENT = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj", "v_proj")}
_BALANCED = {"rank": 8, "alpha": 16.0, "target_modules": ATTENTION}
_NF4 = {"quantization": "nf4"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "efficient": {"adapter": _EFFICIENT},
    "balanced": {"adapter": _BALANCED},
    "expressive": {"adapter": {"rank": 16, "alpha": 32.0, "target_modules": LINEARS}},
    "qlora_memory": {"adapter": _EFFICIENT, "model": _NF4},
    "qlora_quality": {"adapter": _BALANCED, "model": _NF4},
    "bidora": {"adapter": _BALANCED | {"method": "bidora"}},
}
"""What adapter.preset fills in, by section; alpha is twice the rank, so that s is 2."""


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
    remat: Literal["auto", "none", "dots", "layer", "offload"] = "auto"
    """none: keep all activations for the backward pass; dots: keep the sums of the linear layers and what attention in chunks
    gives, recompute what is cheap, and of one micro-batch hand them on to the mixed product of bidora, which has half the products
    with frozen weights then; layer: keep one activation a layer, recompute the rest; offload: dots, kept in the host's memory (a
    GPU only); auto: the fastest of dots, layer and, on a GPU, offload that the compiler counts to fit."""
    attention: Literal["auto", "chunked", "cudnn"] = "auto"
    """Attention of the first-order gradients. cudnn: cuDNN's fused kernels, on an NVIDIA GPU, in 16-bit floats, without
    data.packing; chunked: XLA's, anywhere; auto: cudnn where it works. The mixed product of bidora is always chunked. The two
    give the same gradients to rounding."""
    attention_chunk: int = 1024
    """Sequences of up to so many tokens are attended whole, a layer's scores at a time; longer ones at most half as many queries
    at a time, so that they never hold a [T, T] score matrix."""
    loss_chunk: int = 256
    """The loss holds no more logits at a time than so many tokens have over the whole vocabulary."""


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
    """Start of the factors. kaiming: A uniform, B zero (PEFT's True); gaussian: A normal, B zero; pissa, pissa_niter_N, olora:
    the largest part of the weight itself by an SVD, a randomised one of N iterations, or QR. The base stays as it is; the
    adapter that is written has twice the rank and fits the original base."""
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
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole, with the direction, and saved with the adapter: lm_head, embed_tokens. Embeddings that are
    tied come apart, as in PEFT: the one that is not named stays as it was."""
    preset: Literal["none", "efficient", "balanced", "expressive", "qlora_memory", "qlora_quality", "bidora"] = "none"
    """Settings by name, for what neither the file nor the command line sets: ranks 4, 8, 16 on q v, on the attention, on
    all linear layers; the two of qlora with the base in nf4."""
    path: str = ""
    """Folder of a PEFT adapter to start from. It gives its settings where none are set; those that are set must agree."""
