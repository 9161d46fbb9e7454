"""planning/footprint.py: what the compiler counts, of shapes as of arrays."""

import jax.numpy as jnp
from footprints import DEEP, MODEL, counted
from tiny import random_base

from bidora_jax.kernels.quantized import tree_bytes
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.architectures import decoder
from bidora_jax.planning import footprint


def test_shapes_give_the_footprint_of_arrays(shapes_alone):
    of_arrays, _ = counted(random_base(DEEP), quick=True)
    assert shapes_alone[0] == of_arrays


def test_the_parts_are_those_of_the_trees_and_make_up_the_peak(shapes_alone):
    parts, state = shapes_alone
    per_layer = sum(3 * (o + i) for o, i in decoder.linear_shapes(DEEP).values())
    assert parts.adapter == 4 * 7 * per_layer
    course = 3 * 4  # of the schedule, which a step takes beside the base
    assert parts.base == 4 * adapters.count(quantization.base_shapes(MODEL, DEEP, jnp.float32)) + course
    assert parts.optimiser == tree_bytes(state) - parts.adapter >= 2 * parts.adapter
    assert parts.batch == 2 * 4 * 3 * 48
    assert parts.donated == parts.adapter + parts.optimiser  # the state is written in place
    assert parts.loss > 0 and parts.activations > 0
    named = parts.base + parts.adapter + parts.optimiser + parts.batch + parts.results + parts.temporaries
    assert parts.peak == named
    lines = parts.lines()
    assert len(lines) == 8 and lines[-1].split("peak of a step")[1].strip() == footprint.gigabytes(parts.peak)
