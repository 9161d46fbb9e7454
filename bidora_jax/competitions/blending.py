"""How much of each model is in the blend: greedy selection with replacement (Caruana et al., ICML 2004), out of fold.

It starts with the best single model. Each round adds the model, one that is in already or not, with which the mean of all that
were added scores best; the weights are those of the best round. So the blend is never worse than the best single model on the
rows it was chosen on, and equal scores keep the fewer and earlier models. Nothing is drawn by chance.
"""

from collections.abc import Mapping

import numpy as np

from bidora_jax.competitions import cuts, measures
from bidora_jax.competitions.target import Target

ROUNDS, PATIENCE = 20, 4
"""Rounds at most, and those without a better blend after which it ends."""


def weights(target: Target, truth: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """A weight for each name, 0 of a model that is left out; they sum to 1. measures.Undefined where these rows have no score.

    Cuts are fitted to each candidate, as they will be to the blend.
    """
    measure = measures.MEASURES[target.metric]
    names = list(predictions)

    def score(mixed: np.ndarray) -> float:
        return measures.score(target.metric, target, truth, mixed, cuts.fit(target, truth, mixed))

    total, added, best, chosen = 0.0, [], None, 0
    for size in range(1, (ROUNDS if len(names) > 1 else 1) + 1):
        found = {name: score((total + np.asarray(predictions[name], np.float64)) / size) for name in names}
        name = names[0]
        for other in names[1:]:
            name = other if measure.better(found[other], found[name]) else name
        total = total + np.asarray(predictions[name], np.float64)
        added.append(name)
        if best is None or measure.better(found[name], best):
            best, chosen = found[name], size
        if size - chosen == PATIENCE:
            break
    return {name: added[:chosen].count(name) / chosen for name in names}


def blended(shares: Mapping[str, float], predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Σ weight · predictions."""
    parts = [share * np.asarray(predictions[name], np.float64) for name, share in shares.items() if share]
    return np.sum(parts, axis=0)
