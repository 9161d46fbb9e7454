"""A whole sweep: trials until there are as many as were asked for, then the results. It goes on wherever it stopped."""

import time
from typing import Any

from bidora_jax.errors import InputError, RunError
from bidora_jax.runs.sharing import Shared
from bidora_jax.sweeps import locks, plan, results, space, study, trials
from bidora_jax.sweeps.plan import Plan
from bidora_jax.sweeps.study import Claimed, Study

FAILURES = (InputError, RunError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What a point may run into, of which others know nothing. A full disk or a fault of the program ends the sweep."""


def run(asked: Plan) -> dict[str, Any]:
    """Runs what is left of a sweep; returns what results.json holds. RunError where no point could be run."""
    plan.begin(asked)
    print("\n".join((*asked.notes, f"{asked.trials} trials in {asked.folder}, judged by {asked.metric}")), flush=True)
    shared = Shared()
    with study.opened(asked) as held:
        while (claimed := held.claim()) is not None:
            _run(asked, held, claimed, shared)
        with locks.waited_for(asked.folder / ".results"):
            known = held.trials()
            outcome = results.outcome(asked, known)
            if left := [one.number for one in known if one.state == "running"]:
                print(
                    f"{len(left)} of {asked.trials} trials run in other processes, the last of which writes the results. If it is "
                    "stopped, the same command goes on"
                )
                return outcome
            outcome = results.finish(asked, outcome, shared)
    if outcome["best"] is None:
        raise RunError(f"no point of the sweep could be run; the first one: {known[0].notes.get('error', 'unknown')}")
    return outcome


def _run(asked: Plan, held: Study, claimed: Claimed, shared: Shared) -> None:
    """Runs a trial and tells the study what it gave; a failure is a result too."""
    values, began = space.values(asked.axes, claimed.drawn), time.monotonic()
    named = ", ".join(f"{name} {results.written(value)}" for name, value in claimed.drawn.items())
    print(f"trial {claimed.number} ({claimed.number + 1} of {asked.trials}): {named}", flush=True)
    try:
        found = trials.run(asked, claimed.number, values, shared, lambda seed, mean: held.prunes(claimed, seed, mean))
    except FAILURES as error:
        said = str(error) or type(error).__name__
        held.tell(claimed, None, error=said)
        print(f"  failed: {said.splitlines()[0]}", flush=True)
        return
    notes = {name: value for name, value in found._asdict().items() if name != "pruned"}
    held.tell(claimed, found.score, pruned=found.pruned, **notes)
    sd = "" if found.sd is None else f" (sd {found.sd:.2g} over {len(found.scores)} seeds)"
    stopped = ", stopped after its first seeds" if found.pruned else ""
    print(f"  {asked.metric} {found.score:.6g}{sd}, {time.monotonic() - began:.0f} s{stopped}", flush=True)
