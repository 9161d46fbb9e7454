"""sweeps/study.py, sweeps/locks.py: trials are claimed once, taken over from the dead, and drawn by their number alone."""

from pathlib import Path

from bidora_jax.config import Config
from bidora_jax.sweeps import locks, space, study
from bidora_jax.sweeps.plan import Plan
from bidora_jax.sweeps.records import Records


def plan(folder: Path, *over: str, trials: int = 5, sampler="tpe", higher=False, prune=False) -> Plan:
    folder.mkdir(exist_ok=True)
    return Plan(folder, "", Config(), space.read(over, ""), trials, 2, "loss", higher, None, sampler, prune,
                Records("", "judge.jsonl", "", True, False), {"budget": ""})  # fmt: skip


OVER = ("inner.learning_rate log 1e-5 1e-3", "adapter.rank uniform 2 16", "adapter.method lora dora")


def loss(drawn) -> float:
    return abs(drawn.get("inner.learning_rate", 0) - 3e-4) + int(drawn["adapter.rank"]) / 1e5


def run_all(asked: Plan) -> list[tuple[int, dict]]:
    done = []
    with study.opened(asked) as held:
        while (claimed := held.claim()) is not None:
            done.append((claimed.number, claimed.drawn))
            held.tell(claimed, loss(claimed.drawn), scores=[1.0])
    return done


def test_two_processes_share_the_trials_of_a_study(tmp_path):
    asked = plan(tmp_path / "a", *OVER, trials=3)
    with study.opened(asked) as one, study.opened(asked) as other:
        first, second, third = one.claim(), other.claim(), one.claim()
        assert first and second and third
        assert [first.number, second.number, third.number] == [0, 1, 2]
        assert other.claim() is None  # all are run by somebody
        other.tell(second, 0.5, scores=[0.4, 0.6], tokens=7)
        one.tell(first, None, error="no layer")
        assert [trial.state for trial in one.trials()] == ["failed", "complete", "running"]
        assert one.trials()[1].notes == {"scores": [0.4, 0.6], "tokens": 7}
        assert one.claim() is None  # one that failed is not run again
        one.tell(third, 0.25)
        assert study.best(other.trials(), higher=False) == other.trials()[2]
        assert study.best(other.trials(), higher=True) == other.trials()[1]


def test_the_trial_of_a_process_that_was_killed_is_taken_over_as_it_was_drawn(tmp_path):
    asked = plan(tmp_path / "a", *OVER, trials=2)
    with study.opened(asked) as dead:
        claimed = dead.claim()
        assert claimed is not None
        claimed.lock.close()  # the system does so when a process ends
    with study.opened(asked) as held:
        again = held.claim()
        assert again is not None and (again.number, again.drawn) == (claimed.number, claimed.drawn)
        held.tell(again, 1.0)
        assert [trial.number for trial in held.trials()] == [0]


def test_a_sweep_that_was_begun_several_times_draws_what_one_in_a_piece_draws(tmp_path):
    whole = run_all(plan(tmp_path / "whole", *OVER, trials=12))  # of which TPE draws the last two by the others' scores
    parts = [point for count in (4, 12) for point in run_all(plan(tmp_path / "parts", *OVER, trials=count))]
    assert parts == whole
    assert len({str(drawn) for _, drawn in whole}) == 12


def test_a_grid_is_gone_through_in_order(tmp_path):
    asked = plan(tmp_path / "a", "adapter.rank 2 5", "adapter.method lora dora", trials=4, sampler="grid")
    assert [tuple(drawn.values()) for _, drawn in run_all(asked)] == [
        ("2", "lora"),
        ("2", "dora"),
        ("5", "lora"),
        ("5", "dora"),
    ]


def test_a_point_is_stopped_where_it_is_worse_than_the_median(tmp_path):
    asked = plan(tmp_path / "a", *OVER, trials=6, prune=True)
    stopped = []
    with study.opened(asked) as held:
        for mean in (1.0, 2.0, 3.0, 4.0, 9.0, 0.5):
            claimed = held.claim()
            assert claimed is not None
            stopped.append(held.prunes(claimed, 0, mean))
            held.tell(claimed, mean, pruned=stopped[-1])
        assert stopped == [False, False, False, False, True, False]
        assert held.trials()[4].state == "pruned"
        assert study.best(held.trials(), higher=False) == held.trials()[5]


def test_a_lock_is_held_by_one_at_a_time_and_free_when_its_file_is_closed(tmp_path):
    held = locks.taken(tmp_path / "lock")
    assert held is not None and locks.taken(tmp_path / "lock") is None
    held.close()
    with locks.waited_for(tmp_path / "lock"):
        assert locks.taken(tmp_path / "lock") is None
    again = locks.taken(tmp_path / "lock")
    assert again is not None
    again.close()
