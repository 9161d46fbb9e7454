"""Several adapters over one base: brought to one shape, switched, averaged in their outputs or in their weights.

    inference   y = g ⊙ (x·W0ᵀ + (x·Aᵀ)·Bᵀ)            s is in B; g = m/‖W0 + s·B·A‖, 1 for LoRA, computed once
    ensemble    the mean over adapters of the logits, or of the probabilities, of the next token
    average     W̄ = Σ wᵢ·W'ᵢ = ḡ ⊙ (W0 + Σ wᵢ·(gᵢ/ḡ) ⊙ BᵢAᵢ),    ḡ = Σ wᵢ·gᵢ,    Σ wᵢ = 1

Training recomputes g in every pass; the form for inference holds it. Adapters in this form differ only in ranks, layers and
targets, and zeros fill those differences up, so that a program compiled for one runs them all.

The average is exactly that of the merged matrices of every layer: an adapter whose rank is the sum of the ranks, and whose
factors are the others' side by side. The means of A, of B and of m would be another model, since their product holds every
Bᵢ·Aⱼ. Where all are LoRA there is no g, and the average is a LoRA again.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.errors import InputError, listing
from bidora_jax.kernels import dora
from bidora_jax.models import linear
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.adapter import Adapter, LayerAdapter, get, put
from bidora_jax.models.adapters.initial import prepare_base
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.formats import peft

Combine = Literal["logits", "probabilities"]


class Member(NamedTuple):
    """An adapter with its two trees, as `peft.load_adapter` returns it."""

    adapter: Adapter
    direction: PyTree
    magnitude: PyTree


def load(given: Sequence[str], architecture: Architecture) -> dict[str, Member]:
    """Adapters by name, each from NAME=DIR, or from DIR, which is then the name.

    InputError for two adapters of one name, and one InputError with the faults of all folders.
    """
    pairs = [named(text) for text in given]
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several adapters are called {', '.join(twice)}; name them apart: --adapter NAME=DIR")
    members, wrong = {}, []
    for name, folder in pairs:
        try:
            members[name] = Member(*peft.load_adapter(folder, architecture))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return members


def folders(given: Sequence[str]) -> list[str]:
    """The folder of each adapter."""
    return [named(text)[1] for text in given]


def named(text: str) -> tuple[str, str]:
    """Name and folder of an adapter that is given as NAME=DIR, or as DIR."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals and name and folder and "/" not in name else (text, text)


def inference_form(base: PyTree, members: Sequence[Member]) -> list[Member]:
    """The same functions, all of one shape, with every value that depends on no input computed in advance.

    InputError for an adapter that trained modules outside the layers whole: the members share one base.
    """
    _refuse_whole({f"adapter {number}": member for number, member in enumerate(members, 1)})
    paths = dict.fromkeys(path for member in members for path in member.adapter.targets)
    ranks = {path: max(_rank(member, path) for member in members) for path in sorted(paths)}
    gains = any(member.adapter.magnitude for member in members)
    shape = _shape(ranks, len(members[0].adapter.sites[0].ranks), magnitude=gains)
    base = prepare_base(base, shape)
    return [_inference_form(prepare_base(base, member.adapter), member, shape) for member in members]


def _refuse_whole(members: dict[str, Member]) -> None:
    wrong = [
        f"{name}: {' and '.join(m.adapter.whole_modules)}" for name, m in members.items() if m.adapter.whole_modules
    ]
    if wrong:
        raise InputError(
            f"adapters that trained modules whole (modules_to_save) cannot share a base with others:\n{listing(wrong)}\n"
            "use such an adapter alone"
        )


def _shape(ranks: dict[str, int], layers: int, *, magnitude: bool) -> Adapter:
    """An adapter for inference with the same rank in every layer of a path."""
    sites = tuple(Site(path, (rank,) * layers, (1.0,) * layers) for path, rank in ranks.items())
    return Adapter(sites=sites, magnitude=magnitude)


def _rank(member: Member, path: str) -> int:
    """The rank of the update at a path: twice the adapter's where its start is subtracted."""
    found = member.adapter.at(path)
    return 0 if found is None else found.rank * (2 if found.starts_nonzero else 1)


def _inference_form(base: PyTree, member: Member, shape: Adapter) -> Member:
    direction, magnitude = {}, {}
    own = {site.path: site for site in member.adapter.sites}
    for path, rank in ((site.path, site.rank) for site in shape.sites):
        leaf = get(base["layers"], path)
        layers, out_features, in_features = leaf["weight"].shape
        a, b = jnp.zeros((layers, 0, in_features)), jnp.zeros((layers, out_features, 0))
        gain = jnp.ones((layers, out_features))
        adapted = member.adapter.at(path)
        if adapted is not None:
            pair = adapters.update_factors(member.adapter, own[path], base, member.direction)
            a, b = pair.A, jnp.asarray(own[path].scales, pair.B.dtype)[:, None, None] * pair.B
            if adapted.magnitude:
                m = get(member.magnitude["layers"], path)["m"]
                gain = _gains(adapted, own[path], leaf["weight"], pair, m, leaf["norm_sq"])
        spare = rank - a.shape[1]
        a, b = jnp.pad(a, ((0, 0), (0, spare), (0, 0))), jnp.pad(b, ((0, 0), (0, 0), (0, spare)))
        direction = put(direction, path, {"A": a, "B": b})
        magnitude = put(magnitude, path, {"gain": gain}) if shape.magnitude else {}
    return Member(shape, {"layers": direction}, {"layers": magnitude} if shape.magnitude else {})


@partial(jax.jit, static_argnums=(0, 1))
def _gains(adapted: LayerAdapter, site: Site, weight, pair: dora.Direction, m, norm_sq):
    return adapters.over_layers(partial(linear.row_gain, adapted), site, weight, pair, m, norm_sq)


def average(members: Sequence[Member], weights: Sequence[float] | None = None) -> Member:
    """The weighted mean of the merged matrices of adapters in the form for inference, as one adapter in that form.

    `weights` are shares, equal ones by default. InputError when there are too few or too many, or they are no shares.
    """
    shares = _shares(weights, len(members))
    shape = members[0].adapter
    direction, magnitude = {}, {}
    for path in shape.targets:
        factors = [get(member.direction["layers"], path) for member in members]
        parts = [share * factor["B"] for share, factor in zip(shares, factors, strict=True)]
        if shape.magnitude:
            gains = [get(member.magnitude["layers"], path)["gain"] for member in members]
            mean = jnp.sum(jnp.stack([share * gain for share, gain in zip(shares, gains, strict=True)]), axis=0)
            parts = [_by_row(part, gain, mean) for part, gain in zip(parts, gains, strict=True)]
            magnitude = put(magnitude, path, {"gain": mean})
        a, b = jnp.concatenate([factor["A"] for factor in factors], axis=1), jnp.concatenate(parts, axis=2)
        direction = put(direction, path, {"A": a, "B": b})
    sums = tuple(replace(site, ranks=tuple(len(members) * rank for rank in site.ranks)) for site in shape.sites)
    return Member(replace(shape, sites=sums), {"layers": direction}, {"layers": magnitude} if shape.magnitude else {})


def _by_row(b: Float[Array, "L O r"], gain: Float[Array, "L O"], mean: Float[Array, "L O"]) -> Float[Array, "L O r"]:
    """(g/ḡ) ⊙ B. Where the mean gain of a row is 0 that row of the average is zero, whatever its B is."""
    return b * jnp.where(mean == 0, 0.0, gain / jnp.where(mean == 0, 1.0, mean))[:, :, None]


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise InputError(f"{len(weights)} weights for {count} adapters; give one for each, in their order")
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise InputError(
            f"weights of an average must be at least 0 and not all 0, found {', '.join(map(str, weights))}"
        )
    return [weight / sum(weights) for weight in weights]


def stack(members: Sequence[Member]) -> Member:
    """Members in the form for inference, stacked on a new leading axis that a caller maps over."""
    trees = [(member.direction, member.magnitude) for member in members]
    return Member(members[0].adapter, *jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))


def combined(logits: Float[Array, "N *batch V"], combine: Combine) -> Float[Array, "*batch V"]:
    """Logits of the mean over N members: of their logits, or of their probabilities."""
    if combine == "logits":
        return jnp.mean(logits, axis=0)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=0) - jnp.log(logits.shape[0])


def check(members: dict[str, Member], ensemble: Combine | None, averaged: bool, weights: Sequence[float]) -> None:
    """InputError where a command's --ensemble, --average and --weight contradict each other or the adapters; lists all faults."""
    wrong = []
    if ensemble and averaged:
        wrong.append("--ensemble averages outputs and --average averages weights; choose one")
    if (ensemble or averaged) and len(members) < 2:
        wrong.append(f"--ensemble and --average need two adapters or more, found {len(members)}; repeat --adapter")
    if weights and not averaged:
        wrong.append("--weight is a share in --average")
    if wrong:
        raise InputError("\n".join(wrong))
    if weights:
        _shares(weights, len(members))
    if len(members) > 1:
        _refuse_whole(members)


def for_serving(
    base: PyTree, members: dict[str, Member], ensemble: Combine | None, averaged: bool, weights: Sequence[float]
) -> tuple[PyTree, dict[str, Member]]:
    """The base that a command runs, and the members that run over it by name, in the form for inference: each adapter by itself,
    the average of all, or their stack for an ensemble. Modules that a single adapter trained whole are moved into the base."""
    if not members:
        return base, {}
    if len(members) == 1:
        ((name, (adapter, direction, magnitude)),) = members.items()
        base, adapter, direction = merging.move_whole_modules(adapter, base, direction)
        members = {name: Member(adapter, direction, magnitude)}
    ready = dict(zip(members, inference_form(base, list(members.values())), strict=True))
    if averaged:
        return base, {f"average of {', '.join(members)}": average(list(ready.values()), weights or None)}
    if ensemble:
        return base, {f"ensemble of {', '.join(members)}": stack(list(ready.values()))}
    return base, ready
