"""planning/plans.py: what a run gives up, in which order, to fit a device."""

from dataclasses import replace

import jax.numpy as jnp
from footprints import DATA, DEEP, MODEL

from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.memory import Memory
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import plans, remat_choice
from bidora_jax.planning.plans import Plan
from bidora_jax.training.settings import SearchConfig

PLAN = Plan(ModelConfig(loss_chunk=16), AdapterConfig(method="lora", rank=3),
            DataConfig(batch_size=2, accumulation=3, max_length=512))  # fmt: skip


def test_levels_give_up_bits_before_length_and_keep_what_is_fixed():
    levels = [(p.data.max_length, p.model.quantization) for p in plans._levels(PLAN, frozenset())]
    assert levels == [(n, form) for n in (512, 256) for form in ("none", "int8", "nf4")]
    int8 = replace(PLAN, model=replace(PLAN.model, quantization="int8"))
    assert [p.model.quantization for p in plans._levels(int8, frozenset({"data.max_length"}))] == ["int8", "nf4"]
    fixed = frozenset({"data.max_length", "model.quantization"})
    assert list(plans._levels(PLAN, fixed)) == [PLAN]


def test_within_a_level_the_effective_batch_stays():
    within = plans._within(DEEP, PLAN, frozenset())
    assert {p.data.batch_size * p.data.accumulation for p in within} == {6}
    assert {(p.data.batch_size, p.model.remat) for p in within} == {
        (n, remat) for n in (6, 3, 2, 1) for remat in ("dots", "layer")
    }
    held = plans._within(DEEP, PLAN, frozenset({"data.accumulation"}))
    assert [(p.data.batch_size, p.data.accumulation, p.model.remat) for p in held] == [
        (2, 3, "dots"),
        (2, 3, "layer"),
    ]
    given = replace(PLAN, model=replace(PLAN.model, remat="none"))
    assert {p.model.remat for p in plans._within(DEEP, given, frozenset({"model.remat"}))} == {"none"}


def test_the_fastest_is_what_has_least_arithmetic_unless_a_micro_batch_is_short():
    def order(max_length: int) -> list[tuple[str, int]]:
        data = DataConfig(batch_size=2, accumulation=2, max_length=max_length)
        within = plans._within(DEEP, replace(PLAN, data=data), frozenset())
        return [(p.model.remat, p.data.batch_size) for p in within]

    assert order(1024) == [("dots", 4), ("dots", 2), ("dots", 1), ("layer", 4), ("layer", 2), ("layer", 1)]
    # Two records of 8 tokens cost more by themselves than the layers' third pass over four together.
    assert order(8)[:4] == [("dots", 4), ("layer", 4), ("dots", 2), ("layer", 2)]


def test_a_plan_is_what_the_compiler_confirms():
    data = replace(PLAN.data, max_length=256, batch_size=2, accumulation=1)
    plan = replace(PLAN, data=data, model=replace(PLAN.model, remat="layer"))
    fixed = frozenset({"model.quantization", "model.remat"})
    least, small = plans.search(DEEP, plan, jnp.float32, Memory(1000, ""), fixed)
    assert not remat_choice.fits(small, Memory(1000, ""))
    assert (least.data.batch_size, least.data.accumulation, least.model.remat) == (1, 2, "layer")
    memory = Memory(int(1.1 * remat_choice.needed(small) / remat_choice.FITS), "")
    found, parts = plans.search(DEEP, plan, jnp.float32, memory, fixed)
    assert remat_choice.fits(parts, memory) and found.data.max_length == 256
    assert found.data.batch_size * found.data.accumulation == 2 and found.data.accumulation > 1


def test_a_policy_that_fits_no_micro_batch_is_passed_over(monkeypatch):
    compiled = []

    def counted(config, plan, dtype, devices=()):
        compiled.append((plan.model.remat, plan.data.batch_size))
        return count(config, plan, dtype)

    count = plans.counted
    monkeypatch.setattr(plans, "counted", counted)
    data = replace(PLAN.data, max_length=1024, batch_size=4, accumulation=1)
    plan, fixed = replace(PLAN, data=data), frozenset({"model.quantization"})
    one, two = (
        remat_choice.needed(count(DEEP, replace(plan, data=parts, model=replace(PLAN.model, remat=remat)), jnp.float32))
        for parts, remat in (
            (replace(data, batch_size=1, accumulation=4), "dots"),
            (replace(data, batch_size=2, accumulation=2), "layer"),
        )
    )
    found, _ = plans.search(DEEP, plan, jnp.float32, Memory(int(1.01 * two / remat_choice.FITS), ""), fixed)
    assert (found.model.remat, found.data.batch_size) == ("layer", 2)
    assert compiled == [("layer", 1), ("dots", 4), ("dots", 1), ("layer", 4), ("layer", 2)]
    compiled.clear()
    found, _ = plans.search(DEEP, plan, jnp.float32, Memory(int(1.01 * one / remat_choice.SPARED), ""), fixed)
    assert (found.model.remat, found.data.batch_size) == ("dots", 1)
    assert compiled == [("layer", 1), ("dots", 4), ("dots", 1), ("dots", 2)]


def test_the_arithmetic_of_a_step():
    """By hand: 7 layers, 96 tokens; a LoRA gradient without remat is two passes over linears and head."""
    plan = Plan(replace(MODEL, remat="dots"), AdapterConfig(method="lora"), replace(DATA, batch_size=2))
    linears = 7 * (60 * 26 + 2 * 20 * 26 + 26 * 60 + 3 * 38 * 26)
    assert plans.arithmetic(DEEP, plan) == 2 * 96 * 2 * (linears + 97 * 26)
    # A bilevel step that reads the record of its train gradient is three such gradients over the linears, with one product of the
    # MLP's last one more, and has the logits anew.
    bidora = replace(plan, adapter=AdapterConfig(method="bidora"), search=SearchConfig(hypergradient="exact"))
    assert plans.arithmetic(DEEP, bidora) == 2 * 96 * (6 * linears + 7 * 38 * 26 + 7 * 97 * 26)
    # (remat, form): passes over the linears and over the head, as the compiled steps have them (benchmarks/LOG.md).
    passes = {("none", "exact"): (8, 7), ("layer", "exact"): (12, 7), ("none", "reverse"): (6, 7), ("dots", "reverse"): (7, 7),
              ("layer", "reverse"): (10, 7), ("layer", "finite-difference"): (12, 8), ("dots", "direct"): (4, 4)}  # fmt: skip
    for (remat, form), (over_linears, over_head) in passes.items():
        other = replace(bidora, model=replace(MODEL, remat=remat), search=SearchConfig(hypergradient=form))
        assert plans.arithmetic(DEEP, other) == 2 * 96 * (over_linears * linears + over_head * 97 * 26)
    parts = replace(bidora, data=replace(bidora.data, batch_size=1, accumulation=2))  # no record
    assert plans.arithmetic(DEEP, parts) == 2 * 96 * (8 * linears + 8 * 97 * 26)
    assert plans.dot_rate(jnp.float32, 0.01) > 1e8
