"""runs/dry_run.py and runs/compile_clock.py: the arithmetic of an estimate, and that a rehearsal counts what a run does."""

from dataclasses import replace
from typing import Any

import jax
import pytest

from bidora_jax.machine.memory import Memory
from bidora_jax.planning.footprint import Footprint
from bidora_jax.runs import compile_clock, dry_run
from bidora_jax.runs.compile_clock import Clock
from bidora_jax.runs.dry_run import Cost, Often, PhaseCost, Timed
from bidora_jax.training.compiled_steps import CompiledStep
from bidora_jax.training.loop import Phase

PARTS = Footprint(base=7_000, adapter=50, optimiser=100, batch=3, results=20, loss=11, activations=500, donated=150)
SEARCH = PhaseCost("search", 40, (48, 96), 0.5, PARTS, held=9_000)
OFTEN = {"steps": Often(40, 0.5, rehearsed=1.1), "evaluations": Often(5, 3.0, rehearsed=0.7)}


def test_a_run_that_reads_its_programs_does_not_compile():
    """By hand: 60 s, of which 35 compiling and 1.8 of what comes often; 20 s of steps and 15 of evaluations."""
    kept = Cost((SEARCH,), OFTEN, rehearsal=60.0, compiling=35.0, reading=1.2, tracing=4.0, left=0.0, held=9_400)
    assert kept.once == pytest.approx(60 - 35 - 1.8 + 1.2)
    assert kept.seconds == pytest.approx(60 - 35 - 1.8 + 1.2 + 35)
    anew = kept._replace(reading=None)
    assert anew.seconds == pytest.approx(60 - 1.8 + 35)
    assert kept._replace(left=70.0).seconds == pytest.approx(kept.seconds + 70)
    assert kept.resident == max(9_400, 9_000 + 511 + 20 + 3)
    assert kept._replace(held=None).resident is None
    said = dry_run.report(kept, Memory(10_000, "here"), merged=True)
    assert "time: 59 s = starting and ending 24 s, 40 steps 20 s, 5 evaluations 15 s" in said
    over = "compiling 35 s is over: the programs are kept. The run traces them anew in 4 s, reads them in 1.2 s"
    assert over in said and "writing the merged model is not counted" in said
    longer = dry_run.report(kept._replace(left=70.0), Memory(1, ""), merged=False)
    assert f"{over}, and compiles the other padded lengths for 70 s" in longer
    assert any(line.endswith("15 s, compiling 35 s") for line in dry_run.report(anew, Memory(1, ""), merged=False))


def test_one_line_says_which_memory_is_needed(monkeypatch):
    kept = Cost((SEARCH,), OFTEN, 60.0, 35.0, 1.2, 4.0, 0.0, held=3_000_000_000)

    def line(cost: Cost) -> str:
        (found,) = [line for line in dry_run.report(cost, Memory(10**10, "here"), merged=False) if "memory" in line]
        return found

    assert line(kept).startswith(
        "memory: 3.00 GB is needed of 10.00 GB, here: the whole process at its peak (resident)"
    )
    assert line(kept).endswith("the arrays of the largest step are 0.0 MB of it")
    assert (
        line(kept._replace(held=None))
        == "memory: 0.0 MB is needed of 10.00 GB, here, for the arrays of the largest step"
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert line(kept).startswith("memory: 0.0 MB is needed of 10.00 GB, here, for") and "3.00 GB of the host's" in line(
        kept
    )


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


def test_the_largest_step_is_rehearsed_twice_and_nothing_else_is_compiled():
    """Of lower steps that are longer than the others the one with most padded tokens."""
    planned = phase(48, 64, 96, 48, 96)
    rehearsal = dry_run.Rehearsal(None, Clock())  # type: ignore[arg-type]
    part = rehearsal.part(planned)
    assert (part.steps, rehearsal.phases) == (2, [planned])
    rehearsal.part(planned)
    assert rehearsal.phases == [planned]
    assert [length for number in range(2) for _, length in part.step_shapes(number)] == [96, 96]
    lower, upper = CompiledStep("", len, {}, lambda _: [], (48, 96)), planned.step_shapes(0)[0][0]  # type: ignore[index]
    lengths = [(96, 48), (48, 96), (96, 96), (96, 96)]
    two = replace(planned, steps=4, step_shapes=lambda number: [*zip((lower, upper), lengths[number], strict=True)])
    assert dry_run._largest(two) == 2


def test_a_system_that_tells_no_age_of_a_process_counts_from_the_clock(monkeypatch):
    clock = Clock()
    assert clock.running > 0.2  # this process has imported jax
    monkeypatch.setattr(compile_clock, "process_seconds", lambda: None)
    assert 0 < clock.running < 0.2


def test_the_clock_counts_compiling_and_a_timer_calls():
    clock, times = Clock(), []

    @jax.jit
    def squares(x):
        return (x @ x.T).sum()

    for length in (3, 5):
        squares(jax.numpy.ones((length, length)))
        times.append((clock.compiling, clock.tracing, clock.compiled("squares"), clock.made("squares")))
    assert all(0 < first < second for first, second in zip(*times, strict=True))
    assert clock.compiled("squares") <= clock.compiling and clock.compiled("squares") < clock.made("squares")
    assert clock.made("circles") == 0
    clock._compiled = [(3.0, 5.0), (1.0, 2.5), (2.0, 4.0), (7.0, 7.5)]  # from 1 to 5, and half a second
    assert clock.compiling == 4.5
    double = Timed(lambda x: 2 * x)
    assert (double(3), double(4), double.calls) == (6, 8, 2) and double.last >= 0
