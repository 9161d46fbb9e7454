"""The frequencies of rotary positions, and how they are stretched to a context longer than that of pretraining.

    θᵢ  = base^(−2i/h)                      pair i of a head turns by tθᵢ at position t; RoPE, arXiv:2104.09864
    θᵢ' = θᵢ·(sᵢ + (1 − sᵢ)/factor)         every stretch; sᵢ is the share of its own frequency that the pair keeps

    linear   s = 0                                            positions divided by the factor, arXiv:2306.15595
    llama3   s from 0 to 1 as the pair turns `slow` to `fast` times over the original context (Llama 3.1)
    yarn     s from 1 to 0 as i goes from the pair that turns `fast` times to the one that turns `slow` times,
             and attention is sharpened by a gain on cos and sin, arXiv:2309.00071

They follow from settings alone, so this is NumPy in float64, done once while a step is traced. What transformers computes
(modeling_rope_utils.py, in float32) is the oracle; its `dynamic` and `longrope`, which depend on the length of the
sequence at hand, are not done.
"""

import math

import numpy as np
from jaxtyping import Float

Pairs = Float[np.ndarray, " pairs"]


def frequencies(head_dim: int, base: float) -> Pairs:
    """θ of every pair of a head, in radians a position."""
    return base ** -(np.arange(0, head_dim, 2) / head_dim)


def stretched(theta: Pairs, kept: Pairs | float, factor: float) -> Pairs:
    """The frequencies divided by `factor`, but for the share that each pair keeps."""
    return theta * (kept + (1 - kept) / factor)


def kept_by_turns(theta: Pairs, *, length: int, slow: float, fast: float) -> Pairs:
    """llama3: none below `slow` turns over `length` tokens, all above `fast`, linear in the turns between."""
    turns = theta * length / (2 * math.pi)
    return np.clip((turns - slow) / (fast - slow), 0, 1)


def kept_by_index(head_dim: int, base: float, *, length: int, slow: float, fast: float, whole: bool) -> Pairs:
    """yarn: all up to the pair of `fast` turns over `length` tokens, none from that of `slow`, linear in the index between.

    `whole` rounds the two indices outward. As in transformers the upper one is cut at h − 1, though there are h/2 pairs.
    """

    def index(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = index(fast), index(slow)
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high  # transformers' guard against a step of no width
    return 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)


def yarn_gain(factor: float, weight: float = 1.0) -> float:
    """What yarn multiplies cos and sin by, each of queries and keys: 0.1·weight·ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1
