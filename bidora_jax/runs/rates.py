"""Learning rates and bounds on gradients, which a run may change where it goes on after a loss or a state that was not finite.

run.json   not_finite   {said, step}: what was not finite when the run ended, and the first step whose checkpoint would be ruined by
                        it; null when the run has gone on
           changed      what was changed then: {after, settings: {name: [before, after]}}, one for each time
"""

from dataclasses import replace
from pathlib import Path

from bidora_jax.config import Config, leaves, to_json
from bidora_jax.machine.files import write_whole
from bidora_jax.runs import folder as folders

RATES = (
    "inner.learning_rate",
    "inner.clip",
    "outer.learning_rate",
    "outer.clip",
    "outer.multiplier",
    "retrain.learning_rate",
)


def may_change(folder: Path) -> tuple[str, ...]:
    """The names of the settings that may change when the run in this folder goes on."""
    return RATES if folders.read_facts(folder).get("not_finite") else ()


def ruined(folder: Path) -> int | None:
    """The first step whose checkpoint is no good, if the run in this folder ended so."""
    found = folders.read_facts(folder).get("not_finite")
    return found["step"] if found else None


def taken_over(config: Config) -> list[str]:
    """Writes changed rates into the run folder, whose config.json has the ones before; a line for each of them."""
    folder = Path(config.output_dir)
    facts = folders.read_facts(folder)
    if not (found := facts.get("not_finite")):
        return []
    begun = folders.run_config(str(folder))
    before, after = dict(leaves(begun)), dict(leaves(config))
    used = RATES if config.adapter.method == "bidora" else RATES[:2]
    changed = {name: [before[name], after[name]] for name in used if before[name] != after[name]}
    if changed:
        new = replace(begun, inner=config.inner, outer=config.outer, retrain=config.retrain)
        write_whole(folder / "config.json", to_json(new))
        folders.write_facts(folder, changed=[*facts.get("changed", []), {"after": found["said"], "settings": changed}])
    folders.write_facts(folder, not_finite=None)
    return [f"{name} {old:g} → {new:g} from here on" for name, (old, new) in changed.items()]
