"""A plain LoRA with the effect of any adapter: what inference engines read, and nothing beside it.

    W' − W0 = B·A        one rank R for every module of every layer, s in B (lora_alpha = R), no patterns, no magnitude

Of a LoRA it is exact: s·B·A = (s·B)·A, filled up with zero rows of A and zero columns of B, a start that is taken off
included (kernels/lora_init.py, twice the rank). Of DoRA and BiDoRA it can't be, for with the gains g = m/‖V‖

    W' − W0 = (g − 1) ⊙ W0 + g ⊙ s·B·A

and the first term has all of W0's rank as soon as rows were rescaled. The nearest matrix of rank R is then written, the
first R singular values and vectors (Eckart and Young), and what it leaves is measured and not guessed:

    error = √(Σ ‖W' − W0 − B·A‖²) / √(Σ ‖W' − W0‖²)        Frobenius, over all adapted modules

Every layer of a path is written, with zeros where a layer is not adapted: TGI drops a whole path when one layer lacks it.
Decompositions go module by module, so that a single dense W' − W0 exists at a time; only factors are kept. Up to
EXACT_SIDE they are exact, beyond it randomised (arXiv:0909.4061), whose error is measured just the same.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.errors import InputError, listing
from bidora_jax.kernels import lora_init, quantized
from bidora_jax.kernels.dora import Direction
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.adapter import Adapter, get, put, update_factors
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site, name_of
from bidora_jax.models.architectures.decoder import DecoderConfig, linear_shapes

Pair = tuple[np.ndarray, np.ndarray]
"""A (L, r, I) and B (L, O, r) of a site, on the host."""
RANKS = (8, 16, 32, 64, 128, 256)
"""Tried in this order when none is asked for; engines have room for ranks of these sizes."""
EXACT_SIDE = 1024
"""Largest smaller side of a matrix that is decomposed exactly: 0.7 s for 1024 x 3072 on 2 cores, 64 times that for 4096."""
OVERSAMPLED, ITERATIONS = 16, 4
"""Of the randomised decomposition: columns beyond the rank, and power iterations."""


class LoraApproximation(NamedTuple):
    """A plain LoRA, and how far it is from the adapter it stands for."""

    adapter: Adapter
    settings: AdapterConfig
    direction: PyTree
    errors: dict[str, float]
    """Relative Frobenius error of each adapted module by name; empty where it is exact."""
    error: float
    """That over all modules; 0 where it is exact."""

    @property
    def rank(self) -> int:
        return self.settings.rank


def approximate(
    adapter: Adapter, config: DecoderConfig, base: PyTree, direction: PyTree, magnitude: PyTree, *, rank: int = 0,
    max_error: float = 0.1,
) -> LoraApproximation:  # fmt: skip
    """The plain LoRA of this rank, or without one of the adapter's own rank, where that is exact, and elsewhere of the
    first of RANKS whose error is at most `max_error`.

    The base is prepared for the adapter. InputError for modules trained whole, and where no rank comes near enough.
    """
    if adapter.whole_modules:
        raise InputError(
            f"a plain LoRA can't hold modules that were trained whole ({', '.join(adapter.whole_modules)}): engines take A and B "
            "of linear layers alone; use --format merged"
        )
    needed = max(_factors(adapter, site) for site in adapter.sites)
    if not adapter.magnitude and (not rank or rank >= needed):
        return _assembled(adapter, _folded(adapter, base, direction), rank or needed, {}, 0.0)
    side = max(min(linear_shapes(config)[site.path]) for site in adapter.sites)
    tried = (rank,) if rank else RANKS[: 1 + sum(one < side for one in RANKS)]
    nearest, left = _nearest(adapter, base, direction, magnitude, tried)
    totals = _relative(np.sum([*left.values()], axis=0))
    enough = [number for number, error in enumerate(totals) if rank or error <= max_error]
    if not enough:
        raise InputError(_too_far(tried, totals, max_error))
    chosen = enough[0]
    errors = {name: float(_relative(squares)[chosen]) for name, squares in left.items()}
    return _assembled(adapter, nearest, tried[chosen], errors, float(totals[chosen]))


def _factors(adapter: Adapter, site: Site) -> int:
    """Rows of A that the change of a site's weight takes."""
    return site.rank * (2 if adapter.starts_nonzero else 1)


def _relative(squares: np.ndarray) -> np.ndarray:
    """Errors of each rank tried, from ‖W' − W0‖² and what each rank leaves of it."""
    return np.sqrt(squares[1:] / squares[0]) if squares[0] > 0 else np.zeros(len(squares) - 1)


def _too_far(tried: Sequence[int], errors: np.ndarray, allowed: float) -> str:
    found = [f"rank {rank} leaves {error:.1%}" for rank, error in zip(tried, errors, strict=True)]
    return (
        f"no plain LoRA of rank {tried[-1]} or less comes within --max-error {allowed:g} of W' − W0, which has full rank "
        f"where a magnitude rescaled rows of the weight:\n{listing(found)}\n"
        "use --format merged, which is exact, or accept one of these with --rank"
    )


def _assembled(
    adapter: Adapter, pairs: dict[str, Pair], rank: int, errors: dict[str, float], error: float
) -> LoraApproximation:
    layers, sites = {}, []
    for site in adapter.sites:
        a, b = pairs[site.path]
        fill = (0, max(0, rank - a.shape[1]))
        a, b = a[:, :rank], b[:, :, :rank]
        layers = put(
            layers, site.path, {"A": np.pad(a, ((0, 0), fill, (0, 0))), "B": np.pad(b, ((0, 0), (0, 0), fill))}
        )
        sites.append(Site(site.path, (rank,) * len(site.ranks), (1.0,) * len(site.ranks)))
    modules = tuple(site.path.split(".")[-1] for site in sites)
    settings = AdapterConfig(method="lora", rank=rank, alpha=float(rank), target_modules=modules)
    layers = jax.tree.map(jnp.asarray, layers)
    return LoraApproximation(Adapter(sites=tuple(sites), magnitude=False), settings, {"layers": layers}, errors, error)


def _folded(adapter: Adapter, base: PyTree, direction: PyTree) -> dict[str, Pair]:
    """Factors with their scale in B, on the host."""
    pairs = {}
    for site in adapter.sites:
        a, b = update_factors(adapter, site, base, direction)
        scales = np.asarray(site.scales, np.float32)[:, None, None]
        pairs[site.path] = (np.asarray(a), np.asarray(b) * scales)
    return pairs


def _nearest(
    adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, ranks: tuple[int, ...]
) -> tuple[dict[str, Pair], dict[str, np.ndarray]]:
    """Factors of the last of `ranks` by path, on the host; and of each module ‖W' − W0‖² and what each rank leaves of it."""
    pairs, left = {}, {}
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        pair, squares = _nearest_stack(leaf["weight"], update_factors(adapter, site, base, direction), m, site, ranks)
        pairs[site.path] = (np.asarray(pair.A), np.asarray(pair.B))
        left |= {name_of(layer, site.path): np.asarray(squares[layer], np.float64) for layer in site.layers}
    return pairs, left


@partial(jax.jit, static_argnames=("site", "ranks"))
def _nearest_stack(weight, pair, m, site: Site, ranks: tuple[int, ...]):
    def one(w0, direction, scale, m):
        w0 = quantized.dense(w0).astype(jnp.float32)
        changed = merging.merged_layer(site, w0, direction, scale, m) - w0
        found = _decomposed(changed, ranks[-1])
        return found, _left(changed, found, ranks)

    return adapters.over_layers(one, site, weight, pair, m)


def _decomposed(changed: Float[Array, "O I"], rank: int) -> Direction:
    """B·A of at most this rank, the largest singular values first."""
    side = min(changed.shape)
    rank = min(rank, side)
    if side <= EXACT_SIDE or rank + OVERSAMPLED >= side:
        return lora_init.pissa(changed, rank=rank, scale=1.0)
    key, wider = jax.random.key(0), rank + OVERSAMPLED
    a, b = lora_init.randomised_pissa(key, changed, rank=wider, scale=1.0, iterations=ITERATIONS)
    return Direction(a[:rank], b[:, :rank])


def _left(changed: Float[Array, "O I"], pair: Direction, ranks: tuple[int, ...]) -> Float[Array, " n"]:
    """‖W' − W0‖² and what is left of it after the first r rows of A, for each r of `ranks`. Taken off piece by piece: the
    difference of two squares would drown small remainders."""
    squares, begin = [jnp.sum(jnp.square(changed))], 0
    for rank in ranks:
        changed = changed - pair.B[:, begin:rank] @ pair.A[begin:rank]
        squares, begin = [*squares, jnp.sum(jnp.square(changed))], rank
    return jnp.stack(squares)
