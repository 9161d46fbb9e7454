"""Reads the data, then the model: all that a run needs, checked."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError, listing

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.batches import Examples
    from bidora_jax.data.labelled import PreparedLabels
    from bidora_jax.data.preparation import Prepared
    from bidora_jax.data.records import Record
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.data.splits import Splits
    from bidora_jax.data.tokenizer import Tokenizer
    from bidora_jax.machine.memory import Memory
    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.models.architectures.heads import TrainedHead
    from bidora_jax.planning.remat_choice import FirstPhase, MethodSettings
    from bidora_jax.runs.label_files import Labelled
    from bidora_jax.runs.labelling import Head
    from bidora_jax.runs.sharing import Shared
    from bidora_jax.training.problem import Problem
    from bidora_jax.training.watchers.samples import Prompt


class RunInputs(NamedTuple):
    """All that a run needs, read and checked."""

    problem: "Problem"
    tokenizer: "Tokenizer"
    test: "list[Record]"
    test_rows: "Examples"
    """The same, as tokens."""
    model_folder: Path
    prompts: "list[Prompt]"
    """Prompts that are answered while training goes on."""
    question: str
    """What the first record asks; empty where none asks anything."""
    labelled: "Labelled | None" = None
    """Of a run with labels: those, and the head."""
    stands_on: "dict[str, str] | None" = None
    """Checksums of what was read (runs/foundation.py), where they are known before the run begins."""


class Data(NamedTuple):
    """The data of a run, with the tokenizer that encoded it."""

    splits: "Splits"
    ready: "Prepared"
    tokenizer: "Tokenizer"
    settings: "DataConfig"
    """With the number of padded lengths that `auto` stands for."""


def read_labelled_data(config: Config) -> "PreparedLabels | None":
    """The data of a run with labels as train takes it, or None of a language model's run. Of the model's folder only the tokenizer,
    config.json and the names of its weights are read."""
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.models.formats import hf_config
    from bidora_jax.runs import labelling

    folder = hf_config.resolve_folder(config.model.path, weights=False)
    architecture = hf_config.read_config(folder)
    if not labelling.is_asked(config, architecture):
        return None
    return labelling.prepare(config, folder, architecture.without_output(), load_tokenizer(folder, ends=False))


def read_data(config: Config) -> Data:
    """The data as train takes it. Of the model's folder only the tokenizer and config.json are read."""
    from bidora_jax.data import splits
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.models.formats import hf_config

    found = splits.load(config.data, config.seed)
    folder = hf_config.resolve_folder(config.model.path, weights=False)
    model, tokenizer = hf_config.read_decoder(folder), load_tokenizer(folder)
    ready = _prepared(config, found, model, tokenizer)
    return Data(found, ready, tokenizer, _settings(config, model, ready))


def _settings(config: Config, model: "DecoderConfig", ready: "Prepared") -> "DataConfig":
    """The settings of the data as `assemble` finds them, from the shapes of the weights."""
    if config.data.buckets != "auto":
        return config.data
    from bidora_jax.models import quantization
    from bidora_jax.models.adapters import initial
    from bidora_jax.planning import padded_lengths
    from bidora_jax.training.problem import Problem, made

    adapter, _ = _adapter(config, model)
    base = quantization.base_shapes(replace(config.model, quantization="none"), model, "bfloat16")
    problem = Problem(
        model, config.model, adapter, made(lambda base: initial.prepare_base(base, adapter), base), ready.rows["train"],
        ready.rows.get("val", []), config.data, 0, config.seed, ready.places,
    )  # fmt: skip
    return padded_lengths.settle(problem, _levels(config), config.retrain, eval_every=config.eval_every)[0].data


def _prepared(config: Config, found: "Splits", model: "DecoderConfig", tokenizer: "Tokenizer") -> "Prepared":
    from bidora_jax.data import preparation

    room = {"positions": model.max_position_embeddings, "vocab_size": model.vocab_size}
    return preparation.prepare(config.data, found, tokenizer, **room, seed=config.seed)


def settle(config: Config, inputs: RunInputs, memory: "Memory") -> "tuple[Config, FirstPhase]":
    """The first phase, and the configuration with the choices made for `auto`."""
    from bidora_jax.planning import remat_choice

    first = remat_choice.choose_remat(inputs.problem, _levels(config), memory)
    if first.reason:
        print(first.reason)
    return replace(config, model=first.problem.model, data=first.problem.data, search=first.search), first


def _levels(config: Config) -> "MethodSettings":
    from bidora_jax.planning.remat_choice import MethodSettings

    return MethodSettings(config.adapter.method, config.search, config.inner, config.outer)


def assemble(config: Config, shared: "Shared | None" = None) -> RunInputs:
    """Reads the data, then the model: what is cheap to refuse is refused first. `shared`: with what earlier runs have left."""
    from bidora_jax.models.formats import hf_config
    from bidora_jax.planning import attention_backend, remat_choice
    from bidora_jax.runs import labelling, mesh

    remat_choice.check_remat(config.model)
    attention_backend.check(config.model, config.data)
    mesh.check_devices(config)
    small = hf_config.resolve_folder(config.model.path, weights=False)
    architecture = hf_config.read_config(small)
    build = _labelled if labelling.is_asked(config, architecture) else _language_model
    inputs = build(config, shared)
    return inputs if shared is None else inputs._replace(problem=replace(inputs.problem, programs=shared.programs))


def _language_model(config: Config, shared: "Shared | None") -> RunInputs:
    from bidora_jax.data import splits
    from bidora_jax.data.prompts import question_text
    from bidora_jax.data.tokenizer import load_tokenizer, pad_id
    from bidora_jax.models.formats import hf_config
    from bidora_jax.runs import mesh
    from bidora_jax.training.problem import Problem
    from bidora_jax.training.watchers import samples

    data = splits.load(config.data, config.seed)
    folder = hf_config.resolve_folder(config.model.path)
    model = hf_config.read_decoder(folder)
    adapter, start = _adapter(config, model)
    tokenizer = load_tokenizer(folder)
    _say_own_tokenizer(config, folder)
    asked = (data.test.records, data.val.records, data.train.records)
    prompts = samples.prompts(config.samples, asked, tokenizer, model.max_position_embeddings)
    ready = _prepared(config, data, model, tokenizer)
    print("\n".join(ready.notes))
    base, start = _base(config, folder, model, adapter, start, shared)
    problem = Problem(
        model, config.model, adapter, base, ready.rows["train"], ready.rows.get("val", []), config.data,
        pad_id(tokenizer), config.seed, ready.places, start,
    )  # fmt: skip
    problem = mesh.spread(config, problem)
    test = data.test.records[: config.data.test_limit or None]
    question = next(filter(None, (question_text(record) for split in asked for record in split[:1])), "")
    return RunInputs(_with_lengths(config, problem), tokenizer, test, ready.test, folder, prompts, question)


def _labelled(config: Config, shared: "Shared | None") -> RunInputs:
    from bidora_jax.data.tokenizer import load_tokenizer, pad_id
    from bidora_jax.models.architectures.heads import HEAD_TREE
    from bidora_jax.models.formats import hf_config
    from bidora_jax.runs import label_files, labelling, mesh
    from bidora_jax.training.problem import Problem

    folder = hf_config.resolve_folder(config.model.path)
    model = hf_config.read_config(folder).without_output()
    tokenizer = load_tokenizer(folder, ends=False)
    ready = labelling.prepare(config, folder, model, tokenizer)
    head = labelling.head_for(config, folder, model, ready.labels)
    labelling.check_last_tokens(model, ready, pad_id(tokenizer), tokenizer)
    adapter, start = _adapter(config, model, head)
    if start:
        start = label_files.standardised_start(ready.labels, start)
    task, criterion = labelling.task_of(config, ready, head.spec), labelling.criterion_of(config, ready.labels)
    print("\n".join((*ready.notes, labelling.say(head, adapter))))
    base, start = _base(config, folder, model, adapter, start, shared)
    base = {**base, HEAD_TREE: head.held}
    problem = Problem(
        model, config.model, adapter, base, ready.rows["train"], ready.rows.get("val", []), config.data,
        pad_id(tokenizer), config.seed, ready.places, start, task, criterion, ready.form,
    )  # fmt: skip
    problem = mesh.spread(config, problem)
    labelled = label_files.Labelled(ready.labels, head.spec)
    return RunInputs(_with_lengths(config, problem), tokenizer, [], ready.test, folder, [], "", labelled)


def _say_own_tokenizer(config: Config, folder: Path) -> None:
    from bidora_jax.data.tokenizer import folder_with_adapters

    if config.adapter.path and folder_with_adapters(folder, [Path(config.adapter.path)]) != folder:
        print(f"{config.adapter.path} has a tokenizer or chat template of its own; training takes those of {folder}")


def _base(config: Config, folder: Path, model: "Architecture", adapter: "Adapter", start, shared: "Shared | None"):
    """The base as the adapter needs it, and the factors to start with. What the adapter folder holds frozen moves into the base."""
    from bidora_jax.models.adapters import initial, merging
    from bidora_jax.models.formats import hf
    from bidora_jax.runs import mesh

    if adapter.starts_nonzero:  # a minute and more for a large model
        print(f"adapter.init {adapter.init}: decomposing the weights")
    over = mesh.placement(config, model, adapter)
    base = (
        hf.load(config.model, folder, model, over=over) if shared is None else shared.base(config.model, folder, model)
    )
    if start and adapter.frozen_modules:
        print(f"{' and '.join(adapter.frozen_modules)} of {config.adapter.path} take the base's place, frozen")
        base, direction = merging.place_frozen(adapter, base, start[0])
        start = direction, start[1]
    return initial.prepare_base(base, adapter), start


def _with_lengths(config: Config, problem: "Problem") -> "Problem":
    """The problem with the number of its padded lengths; what was chosen is printed."""
    from bidora_jax.planning import padded_lengths

    problem, reason = padded_lengths.settle(problem, _levels(config), config.retrain, eval_every=config.eval_every)
    if reason:
        print(reason)
    return problem


def _adapter(
    config: Config, model: "Architecture", head: "Head | None" = None
) -> "tuple[Adapter, tuple[PyTree, PyTree] | None]":
    """The adapter, and the factors that adapter.path gives it to start with."""
    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import targets
    from bidora_jax.models.formats import peft

    own = {} if head is None else {"head": head.spec, "present": head.held}
    adapter = adapters.resolve(config.adapter, model, strict=not config.adapter.path, **own)
    if not config.adapter.path:
        return adapter, None
    loaded, *start = peft.load_adapter(config.adapter.path, model)
    wrong = targets.differences(adapter.sites, loaded.sites)
    if adapter.magnitude != loaded.magnitude:
        has = "a magnitude" if loaded.magnitude else "no magnitude"
        wrong.append(f"adapter.method is {config.adapter.method}, and the folder has {has}")
    if not set(adapter.whole_modules) <= set(loaded.whole_modules):
        wrong.append(f"adapter.modules_to_save: {list(adapter.whole_modules)}, found {list(loaded.whole_modules)}")
    if adapter.head != loaded.head:
        wrong.append(f"the head is {_in_words(adapter.head)}, found {_in_words(loaded.head)}")
    if adapter.starts_nonzero:
        wrong.append(f"adapter.init {adapter.init} makes factors of its own, and the folder holds some already")
    if wrong:
        raise InputError(
            f"adapter.path {config.adapter.path} does not fit the settings of this run:\n{listing(wrong)}\n"
            "leave those settings out, and the folder gives its own"
        )
    frozen = tuple(name for name in loaded.whole_modules if name not in adapter.whole_modules)
    return replace(adapter, frozen_modules=frozen), (start[0], start[1])


def _in_words(head: "TrainedHead | None") -> str:
    return "none" if head is None else ", ".join(f"{part.module} {part.shape}" for part in head.parts)


def describe(config: Config, inputs: RunInputs) -> None:
    from bidora_jax.models import quantization
    from bidora_jax.models.adapters.adapter import count, trainable
    from bidora_jax.models.base import dense_shapes, dtype_of

    problem = inputs.problem
    groups = trainable(problem.adapter, problem.config)
    frozen, trained = count(dense_shapes(problem.config, "float32")), sum(groups.values())
    print(f"model {config.model.path}: {frozen:,} frozen parameters in {dtype_of(problem.base)}")
    for line in quantization.describe(problem.base):
        print(line)
    ranks = sorted({rank for site in problem.adapter.sites for rank in site.ranks if rank})
    print(f"{config.adapter.method}, rank {' and '.join(map(str, ranks)) if len(ranks) < 4 else f'{ranks[0]} to {ranks[-1]}'}: "
          + ", ".join(f"{name} {number:,} ({number / (frozen + trained):.4%})" for name, number in groups.items())
          + f"; padded to {', '.join(map(str, problem.buckets))}")  # fmt: skip
    print(f"trainable params: {trained:,} || all params: {frozen + trained:,} || "
          f"trainable%: {100 * trained / (frozen + trained):.4f}")  # fmt: skip
