"""runs/dry_run.py: the arithmetic of an estimate, and that a rehearsal counts what a run does."""

from typing import Any

import jax
import pytest

from bidora_jax.machine.memory import Memory
from bidora_jax.planning.footprint import Footprint
from bidora_jax.runs import dry_run
from bidora_jax.runs.dry_run import Clock, Cost, Often, PhaseCost, Timed
from bidora_jax.training.compiled_steps import CompiledStep
from bidora_jax.training.loop import Phase

PARTS = Footprint(base=7_000, adapter=50, optimiser=100, batch=3, results=20, loss=11, activations=500, donated=150)
SEARCH = PhaseCost("search", 40, (48, 96), 0.5, PARTS, held=9_000)
OFTEN = {"steps": Often(40, 0.5, rehearsed=1.1), "evaluations": Often(5, 3.0, rehearsed=0.7)}


def test_a_run_that_reads_its_programs_does_not_compile():
    """By hand: 60 s, of which 35 compiling and 1.8 of what comes often; 20 s of steps and 15 of evaluations."""
    kept = Cost((SEARCH,), OFTEN, rehearsal=60.0, compiling=35.0, reading=1.2, held=9_400)
    assert kept.once == pytest.approx(60 - 35 - 1.8 + 1.2)
    assert kept.seconds == pytest.approx(60 - 35 - 1.8 + 1.2 + 35)
    anew = kept._replace(reading=None)
    assert anew.seconds == pytest.approx(60 - 1.8 + 35)
    assert kept.resident == max(9_400, 9_000 + 511 + 20 + 3)
    assert kept._replace(held=None).resident is None
    said = dry_run.report(kept, Memory(10_000, "here"), merged=True)
    assert "time: 59 s = starting and ending 24 s, 40 steps 20 s, 5 evaluations 15 s" in said
    assert "compiling 35 s is over: the programs are kept, and the run reads them in 1.2 s" in said
    assert "writing the merged model is not counted" in said
    assert any(line.endswith("15 s, compiling 35 s") for line in dry_run.report(anew, Memory(1, ""), merged=False))


@pytest.mark.parametrize(("steps", "every", "times"), [(7, 3, 3), (6, 3, 2), (2, 3, 1), (7, 0, 1), (7, 1, 7)])
def test_how_often_something_is_done_in_a_phase(steps, every, times):
    assert dry_run._due(steps, every) == times
    assert times == sum(step == steps or (every > 0 and step % every == 0) for step in range(1, steps + 1))


def phase(*lengths: int) -> Phase:
    """A phase whose steps run one program at these padded lengths."""
    program = CompiledStep("", lambda *_: None, {}, lambda _: [], lengths)
    nothing: Any = None
    return Phase(
        name="search", steps=len(lengths), epoch=1, steps_before=0, inputs=nothing, advance=nothing, adapter_of=nothing,
        rates=nothing, selects=False, patience=0, step_shapes=lambda number: [(program, lengths[number])],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "steps"), [((48, 48, 96), 2), ((48, 96, 64, 96, 48), 4), ((48, 96, 64), 3), ((48,), 1)]
)
def test_a_rehearsal_goes_on_to_a_step_that_runs_nothing_for_the_first_time(lengths, steps):
    assert dry_run._enough(phase(*lengths)) == steps


def test_a_system_that_tells_no_age_of_a_process_counts_from_the_clock(monkeypatch):
    clock = Clock()
    assert clock.running > 0.2  # this process has imported jax
    monkeypatch.setattr(dry_run, "process_seconds", lambda: None)
    assert 0 < clock.running < 0.2


def test_the_clock_counts_compiling_and_a_timer_calls():
    clock, times = Clock(), []
    for length in (3, 5):
        jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((length, length)))
        times.append(clock.compiling)
    assert 0 < times[0] < times[1]
    clock._compiled = [(3.0, 5.0), (1.0, 2.5), (2.0, 4.0), (7.0, 7.5)]  # from 1 to 5, and half a second
    assert clock.compiling == 4.5
    double = Timed(lambda x: 2 * x)
    assert (double(3), double(4), double.calls) == (6, 8, 2) and double.last >= 0
