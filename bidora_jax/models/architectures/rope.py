"""The rotation's stretch as config.json asks for it: rope_parameters of transformers 5, or rope_scaling of 4.

    linear   factor
    llama3   factor, low_freq_factor, high_freq_factor;  original_max_position_embeddings, or the model's own context
    yarn     factor (null: by how much the context grew);  the same; beta_slow, beta_fast, truncate; attention_factor or
             mscale and mscale_all_dim

The formulas are in kernels/rope_frequencies.py. A key that a type does not read means nothing, there as here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bidora_jax.kernels import rope_frequencies

# Numbers that each of the types computed here can't do without; null counts as not there.
NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_slow", "beta_fast"),
}
# What transformers assumes where it is not there, and what may be left out altogether.
ABSENT: dict[str, Any] = {"beta_slow": 1, "beta_fast": 32, "truncate": True}
YARN_GAIN = ("attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are stretched to a longer context than that of pretraining."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    length: int = 0
    """llama3, yarn: tokens of the context of pretraining."""
    slow: float = 0.0
    """llama3, yarn: turns over that context up to which a frequency is divided by the factor."""
    fast: float = 0.0
    """llama3, yarn: turns over that context from which a frequency stays unchanged."""
    whole: bool = True
    """yarn: count from whole indices."""
    gain: float = 1.0
    """yarn: the factor on cos and sin."""


def frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> tuple[rope_frequencies.Pairs, float]:
    """Radians a position of every pair of a head, and the gain on cos and sin."""
    theta = rope_frequencies.frequencies(head_dim, base)
    if scaling is None:
        return theta, 1.0
    span = {"length": scaling.length, "slow": scaling.slow, "fast": scaling.fast}
    if scaling.kind == "llama3":
        kept = rope_frequencies.kept_by_turns(theta, **span)
    elif scaling.kind == "yarn":
        kept = rope_frequencies.kept_by_index(head_dim, base, whole=scaling.whole, **span)
    else:
        kept = 0.0
    return rope_frequencies.stretched(theta, kept, scaling.factor), scaling.gain


def read(rope: Mapping[str, Any], context: int) -> RopeScaling | None:
    """The stretch that settings without `problems` ask for, of a model of `context` positions; None for none."""
    kind, full = kind_of(rope), _completed(rope, context)
    if kind == "linear":
        return RopeScaling(kind, float(full["factor"]))
    length = full["original_max_position_embeddings"]
    if kind == "llama3":
        factor, slow, fast = _numbers(full, "factor", "low_freq_factor", "high_freq_factor")
        return RopeScaling(kind, factor, length, slow, fast)
    if kind == "yarn":
        factor, slow, fast = _numbers(full, "factor", "beta_slow", "beta_fast")
        return RopeScaling(kind, factor, length, slow, fast, full["truncate"], _gain(full, factor))
    return None


def problems(rope: Mapping[str, Any], context: int) -> list[str]:
    """Why settings can't be computed, if they can't be."""
    kind, full = kind_of(rope), _completed(rope, context)
    if not isinstance(kind, str) or kind not in NEEDED:
        return [f"rope scaling {kind!r} (computed are {', '.join(NEEDED)})"]
    numbers = [*NEEDED[kind], *(key for key in YARN_GAIN if kind == "yarn" and key in full)]
    wrong = [_fault(kind, key, rope, "a positive number") for key in numbers if not positive(full.get(key))]
    if kind == "yarn" and not isinstance(full["truncate"], bool):
        wrong.append(_fault(kind, "truncate", rope, "true or false"))
    if kind in ("llama3", "yarn") and not wrong:
        slow, fast = NEEDED[kind][2:]
        if full[fast] <= full[slow]:
            wrong.append(f"rope scaling {kind!r}: {fast} {full[fast]} is not above {slow} {full[slow]}")
    return wrong


def positive(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    """Whether a value of a JSON file is a number above zero of that kind; true is none."""
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0


def kind_of(rope: Mapping[str, Any]) -> Any:
    """The type's name; `type` is its older key."""
    return rope.get("rope_type", rope.get("type", "default"))


def _completed(rope: Mapping[str, Any], context: int) -> dict[str, Any]:
    given = {key: value for key, value in rope.items() if value is not None}
    full = {"original_max_position_embeddings": context, **ABSENT, **given}
    if kind_of(rope) == "yarn" and rope.get("factor", 1) is None and positive(full["original_max_position_embeddings"]):
        full["factor"] = context / full["original_max_position_embeddings"]
    return full


def _numbers(full: Mapping[str, Any], *keys: str) -> tuple[float, ...]:
    return tuple(float(full[key]) for key in keys)


def _gain(full: Mapping[str, Any], factor: float) -> float:
    """yarn's attention factor: the given one, else the gain of `factor`; of mscale over mscale_all_dim where both are given."""
    if "attention_factor" in full:
        return float(full["attention_factor"])
    if "mscale" in full and "mscale_all_dim" in full:
        return rope_frequencies.yarn_gain(factor, full["mscale"]) / rope_frequencies.yarn_gain(
            factor, full["mscale_all_dim"]
        )
    return rope_frequencies.yarn_gain(factor)


def _fault(kind: str, key: str, rope: Mapping[str, Any], expected: str) -> str:
    found = repr(rope[key]) if key in rope else "no such key"
    return f"rope scaling {kind!r}: {key}: expected {expected}, found {found}"
