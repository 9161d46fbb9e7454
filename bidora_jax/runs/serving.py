"""What a run folder stands for in the commands that use a model (generate, chat, evaluate): its base with its adapter.

--run DIR                    model, dtype, quantisation and adapter of the run; what the command line gives itself stays
--model DIR                  of a run folder: the same as --run
--adapter DIR                of a run folder: its adapter/; without --model, over the run's base
"""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from bidora_jax.config import Config
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError
from bidora_jax.generation.served_model import Served
from bidora_jax.models.formats import hf_config, peft_config
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from bidora_jax.generation.conversation import Form

Arguments = TypeVar("Arguments", bound=Served)
OF_THE_MODEL = ("dtype", "quantization", "double_quant", "quantized_modules")
"""Settings of a run's base that the commands have too, under the same names."""


def named(argv: Sequence[str]) -> frozenset[str]:
    """Names of the fields that a command line sets."""
    flags = (arg.lstrip("-").partition("=")[0].replace("-", "_") for arg in argv if arg.startswith("--"))
    return frozenset(name.removeprefix("no_") for name in flags)


def settled(arguments: Arguments, given: Collection[str]) -> Arguments:
    """The arguments with a base and adapters in place of run folders. `given` names those that were typed, and stay.

    InputError where no model is named, or two are.
    """
    a = arguments
    if a.run and a.model:
        raise InputError(
            f"--run {a.run} names the model already: leave --model {a.model} out, or use it with --adapter {a.run}/adapter"
        )
    run = a.run or (a.model if a.model and hf_config.is_run(a.model) else "")
    if run:
        if not a.run and a.adapter and not all(_is_of(text, run) for text in a.adapter):
            base = run_config(run).model.path
            raise InputError(
                f"--model {run} is a run folder, whose adapter is over {base}; other adapters need --model {base}, and this one "
                f"is --adapter {run}/adapter"
            )
        others = (text for text in a.adapter if not _is_of(text, run))
        return _over(replace(a, run=run, adapter=(str(peft_config.meant(run)), *others)), run, given)
    if a.model or not a.adapter:
        if not a.model:
            raise InputError("name a run folder with --run, or a model with --model and its adapters with --adapter")
        return a
    runs = {found for text in a.adapter if (found := _run_of(text))}
    bases = {run_config(found).model for found in runs}
    if len(bases) != 1 or not all(map(_run_of, a.adapter)):
        raise InputError(f"--adapter needs its base model: name it with --model{_said_of_bases(a.adapter)}")
    return _over(a, sorted(runs)[0], given)


def _over(arguments: Arguments, run: str, given: Collection[str]) -> Arguments:
    """The arguments on the base of a run."""
    model = run_config(run).model
    own = {name: getattr(model, name) for name in OF_THE_MODEL if name not in given}
    return replace(arguments, model=model.path, **own)


def _run_of(text: str) -> str:
    """The run that an adapter belongs to; empty for another's."""
    folder = _folder(text)
    return next((str(one) for one in (folder, folder.parent) if one.is_dir() and hf_config.is_run(one)), "")


def _folder(text: str) -> Path:
    from bidora_jax.generation import ensembles  # loads JAX

    return Path(ensembles.named(text)[1]).expanduser()


def _is_of(text: str, run: str) -> bool:
    found = _run_of(text)
    return bool(found) and Path(found).resolve() == Path(run).resolve()


def _said_of_bases(texts: Collection[str]) -> str:
    folders = [peft_config.meant(_folder(text)) for text in texts]
    return "".join(dict.fromkeys(map(peft_config.says_of_its_base, folders)))


class Records(NamedTuple):
    """Records that a run says something of."""

    sources: tuple[str, ...]
    what: str
    """What they are to the run, in words."""


def records_to_evaluate(run: str) -> Records:
    """The run's test records, or else its validation records where they are a source of their own; InputError without either."""
    config = run_config(run)
    if config.data.test_file:
        return Records(_sources(config.data.test_file), "the run's test records")
    if config.data.val_file:
        seen = ", which its last phase has trained on" if _retrains(config) else ""
        return Records(_sources(config.data.val_file), f"the run's validation records{seen}")
    split = "; its validation records are a share of those it trained on" if config.data.val_fraction else ""
    raise InputError(f"{run} names no test file and no validation file: give records with --data-file{split}")


Asked = Literal["with texts", "with questions", "unknown"]


def asked_in_training(served: Served) -> Asked:
    """How the runs that answer were asked in training, as the first rows of their data have it: with texts as they stand, or with
    questions in a template."""
    runs = [served.run] if served.run else map(_run_of, served.adapter)
    found: set[Asked] = {_asked(run) if run else "unknown" for run in runs}
    return found.pop() if len(found) == 1 else "unknown"


def form_of_training(served: Served, tokenizer: Any) -> "Form":
    """The form in which a text is asked where nobody chooses one: that of the training. Of an unknown one, the chat template."""
    asked = asked_in_training(served)
    if asked == "with texts":
        return "raw"
    if tokenizer.chat_template:
        return "chat template"
    return "plain template" if asked == "with questions" else "raw"


def _asked(run: str) -> Asked:
    from bidora_jax.data import records
    from bidora_jax.data.sources import sources

    data = run_config(run).data
    source = _sources(data.train_file)[0]
    try:
        # What is no path is a pattern, or a data set on the hub, which would be fetched.
        if not source or not Path(source).expanduser().exists():
            return "unknown"
        first = next(iter(sources.scan(source)))
        row = sources.rename({"": {source: [first]}}, data.columns)[""][source][0]
        found = records.record(row.value) if isinstance(row, sources.SourceRow) else None
    except (InputError, records.BadRecord, StopIteration):  # its files have changed since
        return "unknown"
    if found is None:
        return "unknown"
    return "with questions" if records.is_conversation(found) or "instruction" in found else "with texts"


def as_trained(run: str, arguments: Any, given: Collection[str], names: Collection[str]) -> Any:
    """The arguments with the run's data settings of these names, but for those that were typed."""
    data: DataConfig = run_config(run).data
    mine = {item.name for item in fields(arguments)} - {*given}
    return replace(arguments, **{name: getattr(data, name) for name in names if name in mine})


def _sources(source: str | tuple[str, ...]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else source


def _retrains(config: Config) -> bool:
    return config.adapter.method == "bidora" and bool(config.retrain.epochs or config.retrain.steps)
