"""python -m bidora_jax.kaggle DIR [--plan] [--model M] [--task …] [--metric …] [--folds 5] [--group-column C] [--time 30m]

From train.csv to submission.csv: reads the files of a competition in DIR, says what it takes them for and by which flag to
say otherwise, trains k folds over one base, and leaves submission.csv, oof.csv, report.html, plan.json and model/ in DIR or in
--output. --plan says the plan, writes nothing and trains nothing. guides/competitions.md says the rest.

From Python the module itself is the call: bidora_jax.kaggle("DIR", folds=5) returns the outcome, and the plan with plan=True.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bidora_jax import flags
from bidora_jax.errors import InputError, command, did_you_mean, program

if TYPE_CHECKING:
    from bidora_jax.competitions.files import Files
    from bidora_jax.competitions.plan import Plan, Request

PLAN = "plan.json"
SWITCHES = ("--plan", "--no-plan", "--resume", "--no-resume", "-h", "--help")
WITH_RESUME = ("folder", "output", "plan", "resume")
"""All else is in plan.json."""


@dataclass(frozen=True)
class KaggleArguments:
    """From train.csv and test.csv in a folder to submission.csv: kaggle DIR [FLAGS]. Every guess is printed with the flag that
    overrides it. Not for tables of numbers with few words, such as Titanic or house prices: gradient boosting (LightGBM, CatBoost,
    XGBoost) does better on those, in less time. The report has a TF-IDF baseline beside the encoder, and says which one wins."""

    folder: str = ""
    """Folder with train.csv, test.csv and, if there is one, sample_submission.csv; or give it without a flag: kaggle DIR."""
    output: str = ""
    """Folder to write; without it, that of the competition."""
    plan: bool = False
    """Say the plan and stop; nothing is written."""
    resume: bool = False
    """Go on with the run in the output folder: the folds that are missing."""
    model: str = ""
    """Folder or name on the hub; without it, the first of a short list of encoders that is in the local Hugging Face cache."""
    task: str = ""
    """binary, multiclass, multilabel, regression or ordinal; without it, by the target's values."""
    metric: str = ""
    """accuracy, auc, logloss, f1, macro_f1, mcc, qwk, rmse, rmsle, mae, mcrmse or pearson: the files don't say it."""
    target: tuple[str, ...] = ()
    """Column of train to learn; repeat it for several."""
    id_column: str = ""
    """Column of test that names the rows; none: the submission has none."""
    text_columns: tuple[str, ...] = ()
    """Columns that are texts; repeat it for several. Two and nothing else are a pair."""
    group_column: str = ""
    """Rows with the same value here stay in the same fold; the column is not predicted from."""
    folds: int = 5
    """Parts of train that are held out in turn; each makes a member of the ensemble."""
    time: str = ""
    """Time that all of it may take: 30m, 2h, 1h30m, 90s. Without it, as long as the plan's epochs take."""
    method: str = "lora"
    """lora, dora or bidora."""
    preset: str = ""
    """efficient, balanced, expressive, qlora_memory, qlora_quality; without it, by the task."""
    batch_size: int = 0
    """Rows in a step; 0: by the number of rows."""
    max_length: int = 0
    """Tokens that a row may have; 0: by the rows, 256 at most."""
    lr: float = 0.0
    """Learning rate; 0: by the model's width."""
    epochs: float = 0.0
    """Passes over a fold's training rows; 0: by the number of rows."""
    seed: int = 0
    """Of folds, order, start and dropout."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(
        KaggleArguments, args=_with_folder(argv), prog=program("kaggle"), config=(tyro.conf.UseAppendAction,)
    )
    run(arguments)


def kaggle(folder: str | Path, **settings: Any) -> Any:
    """The command from Python: flags are keywords (id_column="PassengerId"). Returns the outcome, or the plan with plan=True.

    InputError for what is wrong, before anything is written.
    """
    known = {item.name: item for item in dataclasses.fields(KaggleArguments)}
    if unknown := [f"{name!r}{did_you_mean(name, known)}" for name in settings if name not in known]:
        raise InputError(f"kaggle has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    values = {name: _as_field(known[name].default, value) for name, value in settings.items()}
    return run(KaggleArguments(folder=str(folder), **values))


def _as_field(default: Any, value: Any) -> Any:
    """A keyword's value as the flag would give it: one column or several, a folder as text."""
    if isinstance(default, tuple):
        return (value,) if isinstance(value, str) else tuple(value)
    return str(value) if isinstance(value, Path) else value


def run(arguments: KaggleArguments) -> Any:
    """Makes or reads the plan, says it, and goes through with it unless it alone was asked for."""
    _check(arguments)
    from bidora_jax.competitions import files as competition_files
    from bidora_jax.competitions import plan as plans

    files = competition_files.read(arguments.folder)
    output = Path(arguments.output or arguments.folder).expanduser()
    plan = _kept(output) if arguments.resume else _fresh(files, arguments, output)
    print("\n".join(plans.lines(plan)), flush=True)
    if arguments.plan:
        return plan
    from bidora_jax.competitions.competition import compete

    return compete(plan, plans.labelled(files, plan.columns))


def _fresh(files: "Files", arguments: KaggleArguments, output: Path) -> "Plan":
    from bidora_jax.competitions import plan as plans

    if not arguments.plan and (output / PLAN).exists():
        raise InputError(
            f"{output} holds a run already ({PLAN}): go on with it by --resume, or choose another folder with --output"
        )
    return plans.make(files, _request(arguments, output))


def _kept(output: Path) -> "Plan":
    from bidora_jax.competitions import plan as plans

    path = output / PLAN
    if not path.is_file():
        raise InputError(
            f"{output} has no {PLAN}, so there is no run to go on with; leave --resume out, or name its --output"
        )
    try:
        return plans.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a plan that this version wrote ({error}); move it away, and start anew"
        ) from None


def _request(a: KaggleArguments, output: Path) -> "Request":
    from bidora_jax.competitions.columns import Chosen
    from bidora_jax.competitions.detection import Asked
    from bidora_jax.competitions.plan import Request
    from bidora_jax.competitions.recipe import Wishes

    return Request(
        Path(a.folder).expanduser(), output, Chosen(a.id_column, a.target, a.text_columns, a.group_column),
        Asked(a.task, a.metric), Wishes(a.method, a.preset, a.batch_size, a.max_length, a.lr, a.epochs), a.model, a.folds, a.seed,
        seconds(a.time),
    )  # fmt: skip


def _check(arguments: KaggleArguments) -> None:
    """Refuses values out of bounds and flags that contradict each other, all in one message."""
    from bidora_jax.models.adapters.settings import PRESETS

    a = arguments
    given = [item.name for item in dataclasses.fields(a) if getattr(a, item.name) != item.default]
    own = ["--" + name.replace("_", "-") for name in given if name not in WITH_RESUME]
    checks = {
        f"name the folder of the competition: {program('kaggle')} DIR, with train.csv and test.csv in it": not a.folder,
        f"--method must be lora, dora or bidora, found {a.method!r}": a.method not in ("lora", "dora", "bidora"),
        f"--preset must be one of {', '.join(PRESETS)}, found {a.preset!r}": bool(a.preset) and a.preset not in PRESETS,
        f"--folds must be at least 2, found {a.folds}": a.folds < 2,
        "--batch-size, --max-length, --lr and --epochs must be above 0, or 0 to be chosen": min(
            a.batch_size, a.max_length, a.lr, a.epochs
        )
        < 0,
        f"--resume goes on with {PLAN} of the output folder: leave {', '.join(own)} out": a.resume and bool(own),
        f"{a.output} is a file; name a folder with --output": bool(a.output) and Path(a.output).expanduser().is_file(),
    }
    if wrong := [message for message, found in checks.items() if found]:
        raise InputError("\n".join(wrong))
    seconds(a.time)


def seconds(time: str) -> float | None:
    """Seconds of a time such as 1h30m; None without one."""
    if not time:
        return None
    total = flags.seconds(time)
    if not total:
        raise InputError(f"--time must be a time with its unit, such as 30m, 2h, 1h30m or 90s, found {time!r}")
    return total


def _with_folder(argv: Sequence[str]) -> list[str]:
    """The command line with the argument that belongs to no flag as --folder."""
    found, folders, value_follows = [], [], False
    for arg in argv:
        if not value_follows and not arg.startswith("-"):
            folders.append(arg)
        else:
            found.append(arg)
        value_follows = not value_follows and arg.startswith("--") and "=" not in arg and arg not in SWITCHES
    if len(folders) > 1:
        raise InputError(
            f"{program('kaggle')} takes one folder, found {', '.join(folders)}; several values of a flag repeat it"
        )
    return [*found, *(f"--folder={folder}" for folder in folders)]


class _Call(ModuleType):
    """This module, which can be called: bidora_jax.kaggle("DIR")."""

    def __call__(self, folder: str | Path, **settings: Any) -> Any:
        return kaggle(folder, **settings)


sys.modules[__name__].__class__ = _Call

if __name__ == "__main__":
    command(main)
