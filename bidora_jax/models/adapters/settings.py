"""What `adapter.*` means in a configuration, and the presets."""

from dataclasses import dataclass
from typing import Any, Literal

from bidora_jax.models.architectures.decoder import ATTENTION, LINEARS

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
"""The settings that adapter.preset fills in, by section; alpha is twice the rank, so that s is 2."""


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
