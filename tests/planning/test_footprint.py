"""planning/footprint.py, planning/remat_choice.py and planning/plans.py: what the compiler counts, and what is chosen by it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from tiny import CONFIG, random_base

from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError
from bidora_jax.machine.memory import Memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures import decoder
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import footprint, plans, remat_choice
from bidora_jax.planning.plans import Plan
from bidora_jax.planning.remat_choice import MethodSettings
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

DEEP = replace(CONFIG, num_layers=7)
DATA = DataConfig(batch_size=3, buckets=1, max_length=48)
LEVELS = MethodSettings("lora", SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())
MODEL = ModelConfig(remat="layer", loss_chunk=16)


def problem(base, model=MODEL, method="lora"):
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3), DEEP)
    return remat_choice.synthetic(DEEP, model, adapter, base, DATA, DATA.max_length)


def counted(base, model=MODEL, **options):
    made = problem(base, model)
    phase, standing = first_phase("lora", made, SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())
    return footprint.of(made, phase, standing.state, remat_choice.largest(phase), **options), standing.state


@pytest.fixture(scope="module")
def abstract():
    return quantization.base_shapes(MODEL, DEEP, jnp.float32)


@pytest.fixture(scope="module")
def shapes_alone(abstract):
    return counted(abstract)


def test_shapes_give_the_footprint_of_arrays(shapes_alone):
    of_arrays, _ = counted(random_base(DEEP), quick=True)
    assert shapes_alone[0] == of_arrays


def test_the_parts_are_those_of_the_trees_and_make_up_the_peak(shapes_alone):
    parts, state = shapes_alone
    per_layer = sum(3 * (o + i) for o, i in decoder.linear_shapes(DEEP).values())
    assert parts.adapter == 4 * 7 * per_layer
    assert parts.base == 4 * adapters.count(quantization.base_shapes(MODEL, DEEP, jnp.float32))
    assert parts.optimiser == footprint.tree_bytes(state) - parts.adapter >= 2 * parts.adapter
    assert parts.batch == 2 * 4 * 3 * 48
    assert parts.donated == parts.adapter + parts.optimiser  # the state is written in place
    assert parts.loss > 0 and parts.activations > 0
    named = parts.base + parts.adapter + parts.optimiser + parts.batch + parts.results + parts.temporaries
    assert parts.peak == named
    lines = parts.lines()
    assert len(lines) == 8 and lines[-1].split("peak of a step")[1].strip() == footprint.gigabytes(parts.peak)


def test_the_fastest_form_that_fits_is_chosen_with_the_reason(abstract, shapes_alone, monkeypatch):
    auto = problem(abstract, replace(MODEL, remat="auto"))
    roomy = remat_choice.choose_remat(auto, LEVELS, Memory(10**12, "a large device"))
    assert roomy.problem.model.remat == "dots" and roomy.search.hypergradient == "exact"
    assert "remat dots: the fastest that fits" in roomy.said and "a large device" in roomy.said
    lean, bold = shapes_alone[0], roomy.footprint
    assert bold is not None and lean.temporaries < bold.temporaries

    # Neither is compiled again.
    counts = {"dots": bold, "layer": lean}
    monkeypatch.setattr(footprint, "of", lambda problem, *_: counts[problem.model.remat])
    tight = remat_choice.choose_remat(auto, LEVELS, Memory(2 * remat_choice.needed(bold) - 2, "this"))
    assert tight.problem.model.remat == "layer" and tight.footprint == lean
    assert "remat layer: the fastest that fits" in tight.said and "remat dots takes" in tight.said
    none = remat_choice.choose_remat(auto, LEVELS, Memory(1000, "that"))
    assert none.footprint == lean and "not even that fits in" in none.said


def test_what_is_set_is_kept_and_nothing_is_compiled(abstract):
    settled = remat_choice.choose_remat(problem(abstract), LEVELS, Memory(1000, "this"))
    assert (settled.problem.model.remat, settled.footprint, settled.said) == ("layer", None, "")


def test_speed_may_have_half_of_a_memory_that_is_not_its_own(monkeypatch):
    assert remat_choice.share("dots") == 0.5 and remat_choice.share("layer") == remat_choice.FITS
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert remat_choice.share("dots") == remat_choice.FITS


def test_forms_in_the_order_they_are_tried(monkeypatch):
    auto = ModelConfig(remat="auto")
    bidora = LEVELS._replace(method="bidora", search=SearchConfig(hypergradient="auto"))
    assert remat_choice.candidates(auto, bidora) == [("dots", "exact"), ("layer", "exact")]
    assert remat_choice.candidates(MODEL, bidora._replace(search=SearchConfig(hypergradient="direct"))) == [
        ("layer", "direct")
    ]
    assert remat_choice.candidates(auto, LEVELS) == [("dots", "exact"), ("layer", "exact")]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert remat_choice.candidates(auto, bidora) == [("dots", "exact"), ("layer", "exact"), ("offload", "exact")]
    assert [remat for remat, _ in remat_choice.candidates(auto, LEVELS)] == ["dots", "layer", "offload"]


def test_offload_is_refused_on_a_cpu():
    with pytest.raises(InputError, match="a CPU has one memory only; choose auto, none, dots or layer"):
        remat_choice.check(ModelConfig(remat="offload"))
    remat_choice.check(ModelConfig(remat="none"))


def test_offload_keeps_the_products_in_host_memory(abstract):
    made = problem(abstract, replace(MODEL, remat="offload"))
    phase, standing = first_phase("lora", made, SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())
    (program, length) = remat_choice.largest(phase)
    text = str(jax.make_jaxpr(program.step)(standing.state, program.frozen, *program.like(length)))
    assert "<host>" in text or "pinned_host" in text


def test_a_policy_that_was_not_settled_is_no_policy(abstract):
    with pytest.raises(ValueError, match="remat auto is for training, which settles it"):
        counted(abstract, replace(MODEL, remat="auto"))


# Plans

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

    def counted(config, plan, dtype):
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
