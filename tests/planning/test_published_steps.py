"""planning/published_steps.py: counts of the compiler that ship, or are made once and kept; and the table of them.

benchmarks/memory/count_published.py writes the file that ships.
"""

import json
from dataclasses import replace

import pytest
from tiny import CONFIG

from bidora_jax.machine import compile_cache
from bidora_jax.machine.memory import Memory
from bidora_jax.models.adapters.adapter import count
from bidora_jax.models.architectures import published
from bidora_jax.models.base import dense_shapes
from bidora_jax.planning import plans, published_steps, remat_choice

SMALLEST = "Qwen/Qwen3-0.6B"


@pytest.fixture
def nothing_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "default_folder", lambda: tmp_path)
    return tmp_path / "footprints"


def test_a_step_is_counted_once_for_all_forms_of_its_base(monkeypatch, nothing_kept):
    plan = published_steps.listed_plan("lora", "none", 1, 64)
    assert published_steps.known(CONFIG, plan) is None
    found = published_steps.step_bytes(CONFIG, plan)
    kept = json.loads(next(nothing_kept.glob("*.json")).read_text())
    assert kept["bytes"] == found > 2 * count(dense_shapes(CONFIG, "bfloat16"))
    monkeypatch.setattr(plans, "counted", None)
    assert published_steps.step_bytes(CONFIG, plan) == found == published_steps.known(CONFIG, plan)
    for form in ("int8", "nf4"):
        quantised = replace(plan, model=replace(plan.model, quantization=form))
        less = plans.base_bytes(CONFIG, plan, "bfloat16") - plans.base_bytes(CONFIG, quantised, "bfloat16")
        assert less > 0 and published_steps.step_bytes(CONFIG, quantised) == found - less
    with pytest.raises(TypeError):  # another shape is counted anew
        published_steps.step_bytes(replace(CONFIG, num_layers=3), plan)


def test_counts_that_cannot_be_kept_are_made_anew_and_that_is_said_once(nothing_kept, monkeypatch, capsys):
    nothing_kept.write_text("a file where the folder would be")
    monkeypatch.setattr(remat_choice, "needed", lambda _: 7)
    for tokens in (64, 96):
        assert published_steps.step_bytes(CONFIG, published_steps.listed_plan("lora", "none", 1, tokens)) == 7
    said = capsys.readouterr().err
    assert said.count("counts are not kept") == 1 and str(nothing_kept) in said


def test_a_quantised_step_is_what_the_compiler_counts_for_it(nothing_kept):
    """At widths where weights outweigh activations, as they do in a real model; the formula leaves out the copy of one matrix."""
    wide = replace(CONFIG, hidden_size=510, intermediate_size=1530, num_layers=5)
    for form in ("int8", "nf4"):
        plan = published_steps.listed_plan("lora", form, 1, 64)
        exact = remat_choice.needed(plans.counted(wide, plan, "bfloat16"))
        matrix = 4 * 1530 * 510
        assert abs(published_steps.step_bytes(wide, plan) - exact) < 2 * matrix


def test_what_ships_is_what_the_compiler_counts():
    """XLA's versions differ by less than this in what they hold; a step that takes a tenth more is noticed."""
    shipped = json.loads(published_steps.SHIPPED.read_text())
    config, plan = published.shape(SMALLEST), published_steps.listed_plan("lora", "none", 1, 1024)
    assert shipped["steps"][SMALLEST]["lora"] == published_steps.known(config, plan)
    counted = remat_choice.needed(plans.counted(config, plan, "bfloat16"))
    assert shipped["steps"][SMALLEST]["lora"] == pytest.approx(counted, rel=0.05)


def test_every_step_of_the_table_at_its_defaults_ships(monkeypatch, nothing_kept):
    monkeypatch.setattr(plans, "counted", None)
    rows = dict(published_steps.counted(published.names("qwen3"), 1, 1024))
    assert len(rows) == 6
    for name, row in rows.items():
        least = plans.base_bytes(published.shape(name), published_steps.listed_plan("lora", "none", 1, 1), "bfloat16")
        steps = row["steps"]
        assert least < steps["lora"]["none"] < steps["dora"]["none"] < steps["bidora"]["none"] < least + 15e9
        assert all(forms["none"] > forms["int8"] > forms["nf4"] for forms in steps.values())


def test_what_has_to_be_counted_is_said(monkeypatch, nothing_kept, capfd):
    monkeypatch.setattr(published_steps, "_count", lambda config, plan: 10**9)
    name = "HuggingFaceTB/SmolLM2-135M"
    assert len(list(published_steps.counted([name], 1, 77))) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"counting {n} of 3 steps: {name}, {method}; seconds each, kept"
        for n, method in enumerate(("lora", "dora", "bidora"), 1)
    ]


def test_the_table_says_what_fits_and_in_which_form():
    steps = {"lora": {"none": 4e9, "int8": 3e9, "nf4": 2e9}, "dora": {"none": 9e9, "int8": 4e9, "nf4": 3.6e9},
             "bidora": {"none": 9e9, "int8": 9e9, "nf4": 9e9}}  # fmt: skip
    rows = [("a/b", {"parameters": 1_500_000_000, "steps": steps})]
    *head, row = published_steps.as_text(iter(rows), Memory(5 * 10**9, "said"), 1, 1024, {"a/b": 7.2})
    assert " ".join(row.split()) == (
        "a/b 1.50 B 4.0 3.0 2.0 9.0 4.0 3.6 9.0 9.0 9.0 bf16 int8 nf4 int8 nf4 nothing 2.0 h or more"
    )
    assert "none" not in "\n".join([*head, row]) and head[1].endswith("bidora fits in    1,000 bidora steps")
    *head, row = published_steps.as_text(iter(rows), Memory(5 * 10**9, "said"), 1, 1024, {"a/b": None})
    assert row.endswith("nothing") and head[1].endswith("bidora fits in")
