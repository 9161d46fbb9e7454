"""Changes of magnitude and direction by the plain formula, row by row, without a thought for rounding."""

import numpy as np


def rows(w0, a, b, scale):
    """(‖V‖ − ‖W0‖, 1 − cos(V, W0)) of each row, as the paper writes them, in the widest float there is."""
    w0, a, b = (np.asarray(x, np.longdouble) for x in (w0, a, b))
    found = []
    for before, after in zip(w0, w0 + scale * (b @ a), strict=True):
        lengths = np.sqrt((before**2).sum()), np.sqrt((after**2).sum())
        cosine = (before * after).sum() / (lengths[0] * lengths[1])
        found.append((lengths[1] - lengths[0], 1 - cosine))
    return np.array(found, np.float64).T
