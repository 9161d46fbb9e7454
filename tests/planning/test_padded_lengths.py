"""planning/padded_lengths.py: the number of padded lengths that makes compiling plus training shortest."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from footprints import DEEP, MODEL
from runs import SMALL, exit_status, inputs

from bidora_jax import show_data
from bidora_jax.config import read, resolve
from bidora_jax.data.batches import BatchForm, bucket_lengths, full_pass
from bidora_jax.data.encoding import Example
from bidora_jax.data.settings import DataConfig
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import padded_lengths, plans
from bidora_jax.planning.padded_lengths import Compiling, Program
from bidora_jax.planning.plans import Plan
from bidora_jax.planning.remat_choice import MethodSettings
from bidora_jax.training.phases import first_phase
from bidora_jax.training.problem import Problem, made
from bidora_jax.training.settings import OptimizerConfig, RetrainConfig, SearchConfig

DATA = DataConfig(batch_size=3)


def rows(count: int, longest: int) -> list[Example]:
    lengths = np.random.default_rng(count).integers(5, longest, count)
    return [Example(np.zeros(n, np.int32), np.arange(n) > 0, False) for n in lengths]


def problem(method: str, data: DataConfig = DATA) -> Problem:
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3), DEEP)
    base = made(lambda base: initial.prepare_base(base, adapter), quantization.base_shapes(MODEL, DEEP, jnp.float32))
    return Problem(
        DEEP, replace(MODEL, remat="auto"), adapter, base, rows(61, 190), rows(23, 190), data, 0, 0, ("a",) * 84
    )


def levels(method: str, steps: int, **search) -> MethodSettings:
    settings = SearchConfig(steps=steps, hypergradient="auto", **search)
    return MethodSettings(method, settings, OptimizerConfig(), OptimizerConfig())


def test_the_cost_of_a_program_by_hand():
    """Steps at 32, 32, 96, 48; padded to (48, 96) they take 48 + 48 + 96 + 48, and two compilations."""
    one = Program(np.array([32, 32, 96, 48]), weight=3.0, compiling=1000.0)
    assert one.cost((48, 96)) == (2000.0, 3 * 240)
    assert one.cost((96,)) == (1000.0, 3 * 384)
    assert one.cost((96, 128)) == (1000.0, 3 * 384)  # a length that no step meets is not compiled


def settled(method: str, steps: int, monkeypatch, compiling: float) -> tuple[int, str]:
    monkeypatch.setitem(padded_lengths.COMPILING, "cpu", Compiling(compiling, 3 * compiling))
    made, line = padded_lengths.settle(problem(method), levels(method, steps), RetrainConfig(steps=steps), eval_every=0)
    assert isinstance(made.data.buckets, int)
    return made.data.buckets, line


@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_longer_runs_have_more_lengths_and_dearer_compiling_fewer(method, monkeypatch):
    data, form = DataConfig(batch_size=3, max_length=190), SearchConfig(hypergradient="exact")
    step = plans.arithmetic(DEEP, Plan(MODEL, AdapterConfig(method=method), data, search=form))
    counts = [settled(method, steps, monkeypatch, 20 * step)[0] for steps in (3, 300, 700, 1500, 3_000_000)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == padded_lengths.MOST and len(set(counts)) > 2
    assert settled(method, 300, monkeypatch, 2000 * step)[0] == 1
    short, line = settled(method, 3, monkeypatch, 20 * step)
    assert short == 1 and line.startswith("data.buckets auto: 1 padded length; one more would compile for ")
    assert settled(method, 3_000_000, monkeypatch, step)[1].endswith("8 padded lengths, the most that auto takes")


def test_the_choice_is_the_least_of_what_the_phases_cost(monkeypatch):
    """The other way round: the search phase is made for each number, and its lengths are added up step by step."""
    steps, lower, compiling = 40, 2, 3e8
    asked, auto = levels("bidora", steps, lower_steps=lower), problem("bidora")
    monkeypatch.setitem(padded_lengths.COMPILING, "cpu", Compiling(compiling, 2 * compiling))
    totals = []
    for count in range(1, padded_lengths.MOST + 1):
        tried = replace(auto, model=ModelConfig(remat="dots"), data=replace(auto.data, buckets=count))
        phase, _ = first_phase("bidora", tried, replace(asked.search, hypergradient="exact"), asked.inner, asked.outer)
        total, met = 0.0, set()
        for step in range(steps):
            for program, length in phase.step_shapes(step):
                met.add((program, length))
                method = "bidora" if program.name == "" else "dora"
                plan = Plan(ModelConfig(remat="dots"), AdapterConfig(method=method),
                            DataConfig(batch_size=3, max_length=length), search=SearchConfig(hypergradient="exact"))  # fmt: skip
                total += plans.arithmetic(DEEP, plan)
        batches = full_pass(auto.val, tried.buckets, BatchForm(1, 3, 0))
        lengths = [batch["tokens"].shape[-1] for batch in batches]
        gradient = Plan(ModelConfig(remat="dots"), AdapterConfig(method="dora"), DataConfig(batch_size=3, max_length=1))
        total += (
            (1 + 3 + 1) * sum(lengths) * plans.arithmetic(DEEP, gradient) / 2
        )  # at 13, 26, 39, the end, and of the result
        total += len(set(lengths)) * padded_lengths.FORWARD * compiling
        totals.append(total + sum(2 * compiling if program.name == "" else compiling for program, _ in met))
    found, _ = padded_lengths.settle(auto, asked, RetrainConfig(epochs=0.0), eval_every=13)
    assert found.data.buckets == totals.index(min(totals)) + 1
    assert 1 < found.data.buckets < padded_lengths.MOST  # else this would show little


def test_what_is_set_is_kept_and_few_lengths_are_all_taken():
    given = problem("lora", DataConfig(buckets=5))
    assert padded_lengths.settle(given, levels("lora", 7), RetrainConfig(), eval_every=50) == (given, "")
    same = replace(problem("lora"), train=rows(5, 16), val=[])
    found, line = padded_lengths.settle(same, levels("lora", 7), RetrainConfig(), eval_every=50)
    assert found.data.buckets == 1 and line.endswith("1 padded length, one for each length that there is")
    assert found.buckets == (16,) == bucket_lengths([len(row.tokens) for row in same.train], 1)


def test_a_run_keeps_its_number(model_folder, data_files, tmp_path, monkeypatch, capfd):
    """Also where the next version of the package would choose another one; and `data` shows the one of `train`."""
    at = SMALL.index("--data.buckets")
    flags = [*SMALL[:at], *SMALL[at + 2 :], "--adapter.method", "lora", "--search.steps", "2", "--save-every", "1"]
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *flags]
    assert exit_status(argv) == 0
    assert "data.buckets auto: 1 padded length; one more would compile for " in capfd.readouterr().out
    saved = resolve(read(str(tmp_path / "run" / "config.json")))
    assert saved.data.buckets == 1
    show_data.main([*argv, "--records", "0"])
    assert ", padded to 64; " in capfd.readouterr().out
    monkeypatch.setitem(padded_lengths.COMPILING, "cpu", Compiling(0.0, 0.0))
    show_data.main([*argv, "--records", "0"])
    assert ", padded to 48, 64; " in capfd.readouterr().out
    assert exit_status([*argv, "--resume"]) == 0
    assert resolve(read(str(tmp_path / "run" / "config.json"))) == saved


def test_the_number_follows_from_configuration_and_data(monkeypatch):
    """A machine that is busy, or has other cores, chooses the same: nothing is compiled and nothing is timed."""
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    found = [
        padded_lengths.settle(problem("bidora"), levels("bidora", 900), RetrainConfig(), eval_every=50)[0]
        for _ in range(2)
    ]
    assert found[0].data == found[1].data
