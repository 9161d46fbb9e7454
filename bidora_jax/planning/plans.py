"""Settings that make a step fit a device, found by compiling the step from shapes: no weights, no data.

The search first gives up what does not change the result: a large micro-batch, as gradients are summed over micro-batches, and
the fast forms of remat_choice.py. Then it gives up bits of the frozen weights. Last comes length, which cuts or splits records.

    for length in L, L/2, …:   for quantization in none, int8, nf4:   for mesh:   for (batch, remat), the fastest first

Of several devices all are taken, since more rows at a time change nothing either: first a whole base on each, then as few parts of
it as fit. Every count is of one device.

A plan's speed is estimated from its arithmetic and from the fixed cost of a micro-batch, which its tokens share. Records of
1,024 tokens are trained faster one at a time with remat dots than four together with layer, and in less memory
(benchmarks/LOG.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import jax
from jaxtyping import PyTree

from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.memory import Memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import QUANTIZATIONS, MeshConfig, ModelConfig
from bidora_jax.models.spread import Spread, held_bytes, mesh_over
from bidora_jax.planning import footprint, remat_choice
from bidora_jax.planning.attention_backend import AUTO
from bidora_jax.planning.footprint import Footprint
from bidora_jax.planning.remat_choice import MethodSettings
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

SHORTEST = 256
"""The least data.max_length, in tokens, that a plan may set to make a step fit."""
CPU_TOKENS, GPU_TOKENS = 200, 500
"""The fixed cost of a micro-batch, in tokens whose products take as long. Measured on a CPU: 4 x 256 tokens one by one take a
quarter longer than in two. Estimated for a GPU: reading 16-bit weights takes as long as the products of 250 tokens, and
dequantised weights are read twice."""
MAY_CHANGE = ("model.quantization", "model.remat", "data.batch_size", "data.accumulation", "data.max_length",
              "search.hypergradient", "mesh.replica", "mesh.shard")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All settings that a step's memory depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inner: OptimizerConfig = field(default_factory=OptimizerConfig)
    outer: OptimizerConfig = field(default_factory=OptimizerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def devices(self) -> int:
        return self.mesh.devices

    @property
    def levels(self) -> MethodSettings:
        return MethodSettings(self.adapter.method, self.search, self.inner, self.outer)


def counted(config: DecoderConfig, plan: Plan, dtype, devices: Sequence[Any] = ()) -> Footprint:
    """The footprint of the plan's largest step at a model of this shape and dtype, on each of its `devices`. Nothing is allocated.
    The program is not run, so its machine code is not optimised."""
    adapter = adapters.resolve(plan.adapter, config)
    base = quantization.base_shapes(plan.model, config, dtype)
    problem = remat_choice.synthetic(config, plan.model, adapter, base, plan.data, plan.data.max_length)
    if plan.devices > 1:
        mesh = mesh_over(devices, plan.mesh.replica, plan.mesh.shard, plan.mesh.tensor)
        problem = replace(problem, spread=Spread(mesh, problem.base))
    search = replace(plan.search, steps=1, epochs=0.0)
    phase, start = first_phase(plan.adapter.method, problem, search, plan.inner, plan.outer)
    return footprint.of(problem, phase, start.state, remat_choice.largest(phase), quick=True)


def base_bytes(architecture: Architecture, plan: Plan, dtype) -> int:
    """Bytes of the frozen weights alone, on one device. A plan whose base does not fit need not be compiled."""
    return held_bytes(quantization.base_shapes(plan.model, architecture, dtype), plan.mesh.shard * plan.mesh.tensor)


def search(
    config: DecoderConfig,
    plan: Plan,
    dtype,
    memory: Memory,
    fixed: frozenset[str] = frozenset(),
    devices: Sequence[Any] = (),
) -> tuple[Plan, Footprint]:
    """The first plan that fits; where none does, the one that takes least. Settings named in `fixed` (of MAY_CHANGE) are kept.
    `devices` are those of the plan's mesh, and where that is of one device those that it may take."""
    leanest: tuple[Plan, Footprint] | None = None
    count = partial(counted, config, dtype=dtype, devices=devices)
    *rest, smallest = _levels(plan, fixed, len(devices))
    for level in [*rest, smallest]:
        if level is not smallest and base_bytes(config, level, dtype) > remat_choice.FITS * memory.bytes:
            continue
        choices = _within(config, level, fixed)
        least = min(choices, key=_size)
        parts = count(least)
        if leanest is None or parts.peak < leanest[1].peak:
            leanest = least, parts
        if remat_choice.fits(parts, memory):
            return _fastest(count, choices, (least, parts), memory, by_speed="model.remat" not in fixed)
    assert leanest is not None
    return leanest


def _fastest(
    count: Callable[[Plan], Footprint],
    choices: list[Plan],
    least: tuple[Plan, Footprint],
    memory: Memory,
    *,
    by_speed: bool,
) -> tuple[Plan, Footprint]:
    """The first of the choices that fits. The `least` one is known to fit.

    A remat policy is dropped as soon as its smallest micro-batch does not fit: it costs two compilations at most.
    """
    counts = {_size(least[0]): least[1]}

    def fits(one: Plan) -> bool:
        size = _size(one)
        if size not in counts:
            counts[size] = count(one)
        part = remat_choice.share(one.model.remat) if by_speed and one != least[0] else remat_choice.FITS
        return remat_choice.needed(counts[size]) <= part * memory.bytes

    hopeless: set[str] = set()
    for one in choices:
        if one.model.remat in hopeless:
            continue
        if fits(one):
            return one, counts[_size(one)]
        if not fits(min((other for other in choices if other.model.remat == one.model.remat), key=_size)):
            hopeless.add(one.model.remat)
    return least


def _levels(plan: Plan, fixed: frozenset[str], devices: int = 1) -> Iterator[Plan]:
    """Plans by what changes the result: every length, for each length every quantisation, and for that every mesh."""
    lengths = [plan.data.max_length]
    while "data.max_length" not in fixed and lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    forms = QUANTIZATIONS[QUANTIZATIONS.index(plan.model.quantization) :]
    for length in lengths:
        for form in forms[:1] if "model.quantization" in fixed else forms:
            for mesh in _meshes(plan, fixed, devices):
                data, model = replace(plan.data, max_length=length), replace(plan.model, quantization=form)
                yield replace(plan, data=data, model=model, mesh=mesh)


def _meshes(plan: Plan, fixed: frozenset[str], devices: int) -> list[MeshConfig]:
    """The meshes to try, of all devices, the one that sends least first."""
    rows = _sizes(plan, fixed)[0]
    if plan.devices > 1 or fixed & {"mesh.replica", "mesh.shard"} or devices < 2 or rows % devices:
        return [plan.mesh]
    return [MeshConfig(devices // shard, shard) for shard in range(1, devices + 1) if devices % shard == 0]


def _within(architecture: Architecture, plan: Plan, fixed: frozenset[str]) -> list[Plan]:
    """Plans by what does not change the result, the fastest first: the micro-batch, remat, and the form of the hypergradient."""
    effective = plan.data.batch_size * plan.data.accumulation
    model = plan.model if "model.remat" in fixed else replace(plan.model, remat=AUTO)
    free_form = plan.search.hypergradient == "exact" and "search.hypergradient" not in fixed
    levels = plan.levels._replace(search=replace(plan.search, hypergradient=AUTO) if free_form else plan.search)
    choices = []
    for size in _sizes(plan, fixed):
        data = replace(plan.data, batch_size=size, accumulation=effective // size)
        for remat, form in remat_choice.candidates(model, levels, several=plan.devices > 1):
            choices.append(
                replace(
                    plan,
                    data=data,
                    model=replace(model, remat=remat),
                    search=replace(plan.search, hypergradient=form),
                )
            )
    return sorted(choices, key=lambda one: _slowness(architecture, one))


def _sizes(plan: Plan, fixed: frozenset[str]) -> list[int]:
    """Rows of a micro-batch to choose from, the most first: each device takes as many of them."""
    if fixed & {"data.batch_size", "data.accumulation"}:
        return [plan.data.batch_size]
    effective = plan.data.batch_size * plan.data.accumulation
    return [rows for rows in range(effective, 0, -1) if effective % rows == 0 and rows % plan.mesh.row_parts == 0]


def _slowness(architecture: Architecture, plan: Plan) -> tuple[bool, float]:
    """Sort key of the choices. offload comes last, as the time of its transfers to the host is not counted."""
    shared = CPU_TOKENS if jax.default_backend() == "cpu" else GPU_TOKENS
    micro_batch = plan.data.batch_size * plan.data.max_length
    return plan.model.remat == "offload", arithmetic(architecture, plan) * (1 + shared / micro_batch)


def _size(plan: Plan) -> tuple[int, int]:
    """Sort key of a step's memory: the micro-batch, then how much remat keeps of it."""
    return plan.data.batch_size, -("none", "dots", "layer", "offload").index(plan.model.remat)


def arithmetic(architecture: Architecture, plan: Plan) -> float:
    """Floating-point operations of one optimiser step's products with frozen weights, on all levels.

    A pass takes 2·N·tokens for N weights. A gradient is two passes, as frozen weights have no gradient; where layers are
    recomputed it is one more over the layers. BiDoRA's step is two gradients and a mixed product, which takes

        finite-difference   two more gradients
        exact               a gradient and its tangent, forward over reverse; with a record of the train gradient the tangents
                            alone. One micro-batch has a record of its head, and computes the logits' product once more; with
                            remat dots it has one of its layers too, and computes the cotangent of the MLP's product once more.

    Each number below was counted in the compiled step.
    """
    layers = architecture.num_layers
    linears = layers * sum(prod(linear.shape) for linear in architecture.linears)
    tokens = plan.data.batch_size * plan.data.accumulation * plan.data.max_length
    head = architecture.vocab_size * architecture.hidden_size
    again = 1 if plan.model.remat == "layer" else 0
    if plan.adapter.method != "bidora":
        return 2 * tokens * ((2 + again) * linears + 2 * head)
    recorded = plan.data.accumulation == 1
    layers_recorded = recorded and plan.model.remat == "dots"
    mixed, logits = {
        "reverse": ({"none": 2, "layer": 4}.get(plan.model.remat, 3), 3),
        "exact": (2 if layers_recorded else 4 + 2 * again, 3 if recorded else 4),
        "finite-difference": (4 + 2 * again, 4),
        "direct": (0, 0),
    }[plan.search.hypergradient]
    products = (4 + 2 * again + mixed) * linears + (4 + logits) * head
    if layers_recorded and plan.search.hypergradient == "exact":
        products += layers * sum(prod(linear.shape) for linear in architecture.linears if "down" in linear.roles)
    return 2 * tokens * products


def dot_rate(dtype, seconds: float = 0.3) -> float:
    """Floating-point operations a second of this device in a product of activations and weights, measured for a moment."""
    import time

    import jax.numpy as jnp

    x, w = jnp.ones((512, 1024), dtype), jnp.ones((2048, 1024), dtype)
    product = jax.jit(
        lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    )
    jax.block_until_ready(product(x, w))
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        jax.block_until_ready(product(x, w))
        count += 1
    return count * 2 * 512 * 1024 * 2048 / (time.perf_counter() - began)


def as_values(plan: Plan) -> dict[str, PyTree]:
    """The settings of MAY_CHANGE by name."""
    return {name: getattr(getattr(plan, section), leaf) for name in MAY_CHANGE for section, leaf in [name.split(".")]}
