"""Quadratic weighted kappa of levels, from their moments.

    κ = 1 − Σ_ij w_ij O_ij / Σ_ij w_ij E_ij        w_ij = (i − j)², O the observed pairs, E the pairs of independent raters
      = 1 − mean((t − p)²) / (var t + var p + (mean t − mean p)²)

The second form needs no table of pairs: it costs O(N), and sums over sorted values make it O(K) for any K − 1 cut points. For whole
levels it is what scikit-learn's cohen_kappa_score and Kaggle's scripts compute over all levels from the least to the greatest.
"""

import numpy as np


def kappa(truth: np.ndarray, found: np.ndarray) -> float:
    """NaN where both are one and the same constant."""
    truth, found = np.asarray(truth, np.float64), np.asarray(found, np.float64)
    # From the first value on, so that large levels lose no digits.
    origin = truth[0]
    return from_sums(len(truth), *_sums(truth - origin, found - origin))


def _sums(t: np.ndarray, p: np.ndarray) -> tuple[float, float, float, float, float]:
    return float(t.sum()), float(t @ t), float(p.sum()), float(p @ p), float(t @ p)


def from_sums(count: int, t: float, tt: float, p: float, pp: float, tp: float) -> float:
    """The same from Σt, Σt², Σp, Σp² and Σtp over `count` rows."""
    disagreement = tt - 2 * tp + pp
    by_chance = tt + pp - 2 * t * p / count
    return 1 - disagreement / by_chance if by_chance > 0 else float("nan")
