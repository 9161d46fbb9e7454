"""A plain LoRA with the effect of any adapter, in the one form that inference engines read.

    W' − W0 = B·A        one rank R for every module of every layer, s in B (lora_alpha = R), no patterns, no magnitude

Of a LoRA it is exact: s·B·A = (s·B)·A, filled up with zero rows of A and zero columns of B. Where the factors start away from
zero (kernels/lora_init.py) their change since then has twice the rank. Of DoRA and BiDoRA it can't be exact: with the gains
g = m/‖V‖

    W' − W0 = (g − 1) ⊙ W0 + g ⊙ s·B·A

and the first term has all of W0's rank as soon as rows were rescaled. The nearest matrix of rank R is then written, from the
first R singular values and vectors (Eckart and Young), and its error is measured:

    error = √(Σ ‖W' − W0 − B·A‖²) / √(Σ ‖W' − W0‖²)        Frobenius, over all adapted modules

That is an error of matrices. What counts is what the model then says: a matrix of rank 64 that is 32 % off has been seen to lose
0.6 % of what training gained. Where a caller can tell, its `judge` gives the share of the gain that is lost on the run's records,
and the lowest rank is found by bisection.

Every layer of a path is written, with zeros where a layer is not adapted: TGI drops a whole path when one layer lacks it.
Modules are decomposed one by one, so that a single dense W' − W0 exists at a time; only factors are kept. A matrix whose
smaller side is up to EXACT_SIDE is decomposed exactly, a larger one by a randomised method (arXiv:0909.4061); the error is
measured in both cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import Architecture, endings, linear_shapes, module_name
from bidora_jax.models.architectures.heads import HEAD_TREE, TrainedHead

Pair = tuple[np.ndarray, np.ndarray]
"""A (L, r, I) and B (L, O, r) of a site, on the host."""
RANKS = (8, 16, 32, 64, 128, 256)
"""Tried in this order when none is asked for; engines have room for ranks of these sizes."""
EXACT_SIDE = 1024
"""Largest smaller side of a matrix that is decomposed exactly: 0.7 s for 1024 x 3072 on 2 cores, 64 times that for 4096."""
OVERSAMPLED, ITERATIONS = 16, 4
"""Of the randomised decomposition: columns beyond the rank, and power iterations."""


Judge = Callable[[Adapter, PyTree], float]
"""(adapter, direction) of a plain LoRA -> the share of what training gained that is lost with it."""


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

    def with_head(self, head: TrainedHead, direction: PyTree) -> "LoraApproximation":
        """The same with the head of a classifier, as it is in the direction that was approximated."""
        return self._replace(
            adapter=replace(self.adapter, head=head), direction={**self.direction, HEAD_TREE: direction[HEAD_TREE]}
        )


def approximate(
    adapter: Adapter, architecture: Architecture, base: PyTree, direction: PyTree, magnitude: PyTree, *, rank: int = 0,
    max_error: float = 0.1, judge: Judge | None = None,
) -> LoraApproximation:  # fmt: skip
    """The plain LoRA of this rank. Without a rank: of the adapter's own rank where that is exact, elsewhere of the first of
    RANKS that loses at most `max_error`: of what was gained where there is a `judge`, else of W' − W0.

    The base is prepared for the adapter. InputError for modules trained whole, and where no rank comes near enough.
    """
    if adapter.whole_modules:
        raise InputError(
            f"a plain LoRA can't hold modules that were trained whole ({', '.join(adapter.whole_modules)}): engines take A and B "
            "of linear layers alone; use --format merged"
        )
    needed = max(_factors(adapter, site) for site in adapter.sites)
    if not adapter.magnitude and (not rank or rank >= needed):
        return _assembled(adapter, architecture, _folded(adapter, base, direction), rank or needed, {}, 0.0)
    side = max(min(linear_shapes(architecture)[site.path]) for site in adapter.sites)
    tried = (rank,) if rank else RANKS[: 1 + sum(one < side for one in RANKS)]
    nearest, by_site = _nearest(adapter, base, direction, magnitude, tried)
    left = {
        module_name(architecture, layer, site.path): squares[layer]
        for site, squares in zip(adapter.sites, by_site, strict=True)
        for layer in site.layers
    }
    totals = _relative(np.sum([*left.values()], axis=0))

    def of_rank(number: int) -> LoraApproximation:
        errors = {name: float(_relative(squares)[number]) for name, squares in left.items()}
        return _assembled(adapter, architecture, nearest, tried[number], errors, float(totals[number]))

    if rank:
        return of_rank(0)
    if judge is not None:
        return _judged(of_rank, tried, judge, max_error)
    enough = [number for number, error in enumerate(totals) if error <= max_error]
    if not enough:
        raise InputError(_too_far(tried, totals, max_error, "W' − W0"))
    return of_rank(enough[0])


def _judged(
    of_rank: Callable[[int], LoraApproximation], tried: Sequence[int], judge: Judge, allowed: float
) -> LoraApproximation:
    """The first of the ranks that loses at most this share of the gain, by bisection: a higher rank loses no more."""
    lost: dict[int, float] = {}

    def enough(number: int) -> bool:
        one = of_rank(number)
        lost[number] = judge(one.adapter, one.direction)
        print(f"rank {tried[number]}: {lost[number]:.1%} of the gain lost, {one.error:.1%} of W' − W0", flush=True)
        return lost[number] <= allowed

    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    if high not in lost and not enough(high):
        measured = sorted(lost)
        shares = np.array([lost[number] for number in measured])
        raise InputError(_too_far([tried[number] for number in measured], shares, allowed, "what training gained"))
    return of_rank(high)


def _factors(adapter: Adapter, site: Site) -> int:
    """The rank of the update of a site's weight."""
    return site.rank * (2 if adapter.starts_nonzero else 1)


def _relative(squares: np.ndarray) -> np.ndarray:
    """The error of each rank tried, from ‖W' − W0‖² and the squares that each rank leaves of it."""
    return np.sqrt(squares[1:] / squares[0]) if squares[0] > 0 else np.zeros(len(squares) - 1)


def _too_far(tried: Sequence[int], errors: np.ndarray, allowed: float, of: str) -> str:
    found = [f"rank {rank} loses {error:.1%}" for rank, error in zip(tried, errors, strict=True)]
    return (
        f"no plain LoRA of rank {tried[-1]} or less comes within --max-error {allowed:g} of {of}; W' − W0 has full rank where a "
        f"magnitude rescaled rows of the weight:\n{listing(found)}\n"
        "use --format merged, or accept one of these with --rank"
    )


def _assembled(
    adapter: Adapter,
    architecture: Architecture,
    pairs: dict[str, Pair],
    rank: int,
    errors: dict[str, float],
    error: float,
) -> LoraApproximation:
    """The factors, cut or filled up to the rank, with the adapter and the settings that they mean."""
    layers, sites = {}, []
    for site in adapter.sites:
        a, b = pairs[site.path]
        fill = (0, max(0, rank - a.shape[1]))
        a, b = a[:, :rank], b[:, :, :rank]
        layers = put(
            layers, site.path, {"A": np.pad(a, ((0, 0), fill, (0, 0))), "B": np.pad(b, ((0, 0), (0, 0), fill))}
        )
        sites.append(Site(site.path, (rank,) * len(site.ranks), (1.0,) * len(site.ranks)))
    modules = tuple(name for site in sites for name in endings(architecture, site.path))
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
) -> tuple[dict[str, Pair], list[np.ndarray]]:
    """Factors of the last of `ranks` by path, on the host; and of each site, layer by layer, ‖W' − W0‖² and the squares that
    each rank leaves of it."""
    pairs, left = {}, []
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        pair, squares = _nearest_stack(leaf["weight"], update_factors(adapter, site, base, direction), m, site, ranks)
        pairs[site.path] = (np.asarray(pair.A), np.asarray(pair.B))
        left.append(np.asarray(squares, np.float64))
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
    """‖W' − W0‖², and ‖W' − W0 − B·A‖² of the first r rows of A for each r of `ranks`. The products are subtracted from the
    matrix: the difference of two squares would lose a small remainder to rounding."""
    squares, begin = [jnp.sum(jnp.square(changed))], 0
    for rank in ranks:
        changed = changed - pair.B[:, begin:rank] @ pair.A[begin:rank]
        squares, begin = [*squares, jnp.sum(jnp.square(changed))], rank
    return jnp.stack(squares)
