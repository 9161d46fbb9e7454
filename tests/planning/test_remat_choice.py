"""planning/remat_choice.py: the fastest form of rematerialisation that fits, and why."""

from dataclasses import replace

import jax
import pytest
from footprints import MODEL, counted, problem

from bidora_jax.errors import InputError
from bidora_jax.machine.memory import Memory
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import footprint, remat_choice
from bidora_jax.planning.remat_choice import MethodSettings
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

LEVELS = MethodSettings("lora", SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())


def test_the_fastest_form_that_fits_is_chosen_with_the_reason(abstract, shapes_alone, monkeypatch):
    auto = problem(abstract, replace(MODEL, remat="auto"))
    roomy = remat_choice.choose_remat(auto, LEVELS, Memory(10**12, "a large device"))
    assert roomy.problem.model.remat == "dots" and roomy.search.hypergradient == "exact"
    assert "remat dots: the fastest that fits" in roomy.reason and "a large device" in roomy.reason
    lean, bold = shapes_alone[0], roomy.footprint
    assert bold is not None and lean.temporaries < bold.temporaries

    # Neither is compiled again.
    counts = {"dots": bold, "layer": lean}
    monkeypatch.setattr(footprint, "of", lambda problem, *_: counts[problem.model.remat])
    tight = remat_choice.choose_remat(auto, LEVELS, Memory(2 * remat_choice.needed(bold) - 2, "this"))
    assert tight.problem.model.remat == "layer" and tight.footprint == lean
    assert "remat layer: the fastest that fits" in tight.reason and "remat dots takes" in tight.reason
    none = remat_choice.choose_remat(auto, LEVELS, Memory(1000, "that"))
    assert none.footprint == lean and "not even that fits in" in none.reason


def test_what_is_set_is_kept_and_nothing_is_compiled(abstract):
    settled = remat_choice.choose_remat(problem(abstract), LEVELS, Memory(1000, "this"))
    assert (settled.problem.model.remat, settled.footprint, settled.reason) == ("layer", None, "")


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
        remat_choice.check_remat(ModelConfig(remat="offload"))
    remat_choice.check_remat(ModelConfig(remat="none"))


def test_offload_keeps_the_products_in_host_memory(abstract):
    made = problem(abstract, replace(MODEL, remat="offload"))
    phase, standing = first_phase("lora", made, SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())
    (program, length) = remat_choice.largest(phase)
    text = str(jax.make_jaxpr(program.step)(standing.state, program.frozen, *program.like(length)))
    assert "<host>" in text or "pinned_host" in text


def test_a_policy_that_was_not_settled_is_no_policy(abstract):
    with pytest.raises(ValueError, match="remat auto is for training, which settles it"):
        counted(abstract, replace(MODEL, remat="auto"))
