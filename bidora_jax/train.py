"""python -m bidora_jax.train --config configs/NAME.py [--SECTION.FIELD VALUE …] [--resume | --auto | --dry-run]

Reads everything and refuses what is wrong before it writes the first byte of the run folder; then trains phase by phase
and leaves the adapter, and the merged model when asked.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.config import Config, differences, named, parse_train, read, resolve, settled, to_json
from bidora_jax.errors import InputError, command, listing

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import PyTree

    from bidora_jax.models.adapters import Adapter
    from bidora_jax.models.decoder import DecoderConfig
    from bidora_jax.training.checkpoint import Checkpoints
    from bidora_jax.training.data import Batch
    from bidora_jax.training.evaluation import Answers
    from bidora_jax.training.fitting import Settled
    from bidora_jax.training.loop import Loop, Phase, Standing
    from bidora_jax.training.memory import Memory
    from bidora_jax.training.phases import Problem
    from bidora_jax.training.records import Record, Tokenizer
    from bidora_jax.training.samples import Prompt

    Losses = Callable[[PyTree, PyTree], float]
    """(direction, magnitude) to the validation loss."""

MAY_CHANGE_ON_RESUME = ("output_dir", "log_every", "save_every", "keep", "merged", "max_new_tokens", "data.test_limit",
                        "compilation_cache", "data.token_cache", "memory_limit", "report", "tensorboard", "wandb", "samples.every",
                        "samples.prompts", "samples.count", "samples.max_new_tokens", "samples.temperature")  # fmt: skip
SETTLED = ("model.remat", "model.attention", "search.hypergradient")
"""What `auto` stands for is chosen at the start of a run; a resumed one keeps the choice."""


class Assembled(NamedTuple):
    """All that a run needs, read and checked."""

    problem: "Problem"
    tokenizer: "Tokenizer"
    test: "list[Record]"
    model_folder: Path
    prompts: "list[Prompt]"
    """What samples are written for."""


def main(argv: list[str]) -> None:
    config, resume = parse_train(argv)
    given = named(argv)
    check(config)
    if resume and "auto" in given:
        raise InputError(
            "--auto chooses settings for a new run; --resume goes on with those of the run folder: leave one out"
        )
    if resume:
        config = _as_begun(config)
    dry = "dry_run" in given
    if not dry:
        check_folder(config, resume)
    from bidora_jax import auto, dryrun, exhaustion
    from bidora_jax.training.compilation import keep_compiled
    from bidora_jax.training.memory import device_memory, keep_freed_memory

    keep_freed_memory()
    kept = keep_compiled(config.compilation_cache)
    clock = dryrun.Clock() if dry else None
    memory = device_memory(config.memory_limit)
    if "auto" in given:
        config = auto.fit(config, given, memory)
    with exhaustion.explained(config):
        parts = assemble(config)
        config, first = settle(config, parts, memory)
    parts = parts._replace(problem=first.problem)
    with exhaustion.explained(config, parts.problem.buckets[-1]):
        if clock is not None:
            _describe(config, parts)
            dryrun.main(config, parts, first, memory, clock, kept=kept is not None)
        else:
            run(config, parts, first)


def settle(config: Config, parts: Assembled, memory: "Memory") -> "tuple[Config, Settled]":
    """The first phase, and the configuration with what `auto` stands for."""
    from bidora_jax.training import fitting

    levels = fitting.Levels(config.adapter.method, config.search, config.inner, config.outer)
    first = fitting.settle(parts.problem, levels, memory)
    if first.said:
        print(first.said)
    return replace(config, model=first.problem.model, search=first.search), first


def run(
    config: Config,
    parts: Assembled,
    first: "Settled",
    *,
    losses: "Losses | None" = None,
    make_loop: "Callable[..., Loop] | None" = None,
) -> None:
    """Trains, and writes the run folder. A rehearsal brings a shorter validation and a loop of its own (dryrun.py)."""
    from bidora_jax import journal
    from bidora_jax.training.checkpoint import Checkpoints
    from bidora_jax.training.loop import Loop, Rhythm

    problem, folder, began = parts.problem, Path(config.output_dir), time.monotonic()
    if losses is None and problem.val:
        losses = validator(problem, validation_batches(problem))
    _describe(config, parts)
    before = answers(config, parts, problem.base)
    _start_folder(config)
    with journal.begin(config, parts) as log, Checkpoints(folder / "checkpoints", config.keep) as checkpoints:
        rhythm = Rhythm(config.eval_every, config.save_every, config.log_every)
        loop = (make_loop or Loop)(losses, log, checkpoints, rhythm, journal.watchers(config, parts))
        direction, magnitude = _train(config, problem, loop, checkpoints, first)
    _finish(config, parts, direction, magnitude, before, losses)
    journal.end(config)
    seconds = time.monotonic() - began
    print(f"finished in {seconds:.0f} s; {loop.waited / seconds:.1%} of it the device waited for data")


def validation_batches(problem: "Problem") -> "list[Batch]":
    """The validation split, padded as it is evaluated; none where there is no such split."""
    from bidora_jax.training.data import full_pass

    return list(full_pass(problem.val, problem.buckets, problem.data.batch_size, problem.pad_id)) if problem.val else []


def validator(problem: "Problem", batches: "list[Batch]") -> "Losses":
    """The loss over these batches of an adapter: (direction, magnitude) to a number."""
    from bidora_jax.training import evaluation

    evaluate = evaluation.evaluator(problem.config, replace(problem.adapter, dropout=0.0), problem.model)
    return lambda direction, magnitude: evaluate(problem.base, direction, magnitude, batches).loss


def check(config: Config) -> None:
    """Refuses values and pairs that can't be meant."""
    from bidora_jax.training import optim, splits, tracking

    optim.check("inner", config.inner)
    optim.check("outer", config.outer)
    wrong = tracking.missing([name for name in ("tensorboard", "wandb") if getattr(config, name)])
    least_one = {"data.batch_size", "data.accumulation", "data.buckets", "search.lower_steps", "keep", "max_new_tokens",
                 "model.attention_chunk", "model.loss_chunk", "samples.count", "samples.max_new_tokens"}  # fmt: skip
    least_zero = {"seed", "log_every", "eval_every", "save_every", "data.test_limit", "search.epochs", "search.steps",
                  "search.gram_penalty", "search.patience", "retrain.epochs", "retrain.steps", "retrain.learning_rate",
                  "outer.multiplier", "samples.every", "samples.temperature"}  # fmt: skip
    for name, value in _leaves(config).items():
        if (name in least_one and value < 1) or (name in least_zero and value < 0):
            wrong.append(f"{name} must be at least {1 if name in least_one else 0}, found {value}")
    if config.data.max_length < 2:
        wrong.append(f"data.max_length must be at least 2, found {config.data.max_length}")
    if not 0 <= config.data.val_fraction < 1:
        wrong.append(f"data.val_fraction must be in [0, 1), found {config.data.val_fraction}")
    if not config.model.path:
        wrong.append("model.path is not set: give a model folder or the name of a model on the Hugging Face hub")
    if not config.data.train_file:
        wrong.append("data.train_file is not set: give a file of records, such as JSONL or CSV")
    wrong += splits.check(config.data)
    if config.data.val_file and config.data.val_fraction:
        wrong.append("data.val_file and data.val_fraction are both set: keep one of them")
    validated = config.data.val_file or config.data.val_fraction
    if config.adapter.method == "bidora" and not validated:
        wrong.append("method bidora trains the magnitude on a validation split, and there is none: "
                     "set data.val_file, or data.val_fraction (0.2 in the paper), or choose method dora")  # fmt: skip
    if config.search.patience and not validated:
        wrong.append("search.patience needs a validation split: set data.val_file or data.val_fraction")
    if config.search.gram_penalty and config.adapter.method == "lora":
        wrong.append("search.gram_penalty is on the normalised direction, which method lora does not have")
    if config.search.lower_steps > 1 and config.adapter.method != "bidora":
        wrong.append(f"search.lower_steps needs two levels, and method {config.adapter.method} has one")
    if not config.search.epochs and not config.search.steps:
        wrong.append("search.epochs and search.steps are both 0: there is nothing to train")
    if wrong:
        raise InputError("the configuration can't be run:\n" + listing(wrong))


def _as_begun(config: Config) -> Config:
    """A resumed run's configuration with the choices that it began with where it says auto."""
    saved = Path(config.output_dir) / "config.json"
    return settled(config, resolve(read(str(saved))), SETTLED) if saved.is_file() else config


def check_folder(config: Config, resume: bool) -> None:
    """A new run wants a new folder; a resumed one wants its own, with the configuration it began with."""
    folder = Path(config.output_dir)
    saved = folder / "config.json"
    if not resume:
        if folder.is_dir() and any(folder.iterdir()):
            what = "holds another run" if saved.is_file() else "is not empty"
            raise InputError(
                f"output_dir {folder} {what}: choose another one with --output-dir, or go on with --resume"
            )
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"output_dir {folder} can't be: {nearest} is a file; choose another one with --output-dir")
        return
    if not saved.is_file():
        raise InputError(f"nothing to resume: {saved} does not exist; start without --resume, or name its --output-dir")
    changed = differences(resolve(read(str(saved))), config, MAY_CHANGE_ON_RESUME)
    if changed:
        raise InputError(
            f"the configuration differs from the one that {folder} was started with:\n{listing(changed)}\n"
            f"resume with --config {saved}, or start a new run with another --output-dir"
        )


def assemble(config: Config) -> Assembled:
    """Reads the data, then the model. The order puts the cheap refusals first."""
    from bidora_jax.models import adapters, hf
    from bidora_jax.training import attending, fitting, preparation, records, samples, splits
    from bidora_jax.training.phases import Problem

    fitting.check(config.model)
    attending.check(config.model, config.data)
    data = splits.load(config.data, config.seed)
    model_folder = hf.resolve_folder(config.model.path)
    decoder_config = hf.read_config(model_folder)
    adapter, start = _adapter(config, decoder_config)
    tokenizer = records.load_tokenizer(model_folder)
    asked = (data.test.records, data.val.records, data.train.records)
    prompts = samples.prompts(config.samples, asked, tokenizer, decoder_config.max_position_embeddings)
    ready = preparation.prepare(config.data, data, tokenizer, decoder_config.max_position_embeddings, config.seed)
    print("\n".join(ready.said))
    if adapter.subtracts:  # a minute and more for a large model
        print(f"adapter.init {adapter.init}: decomposing the weights")
    base = adapters.prepare_base(hf.load(config.model, model_folder, decoder_config), adapter)
    problem = Problem(
        decoder_config, config.model, adapter, base, ready.rows["train"], ready.rows.get("val", []), config.data,
        records.pad_id(tokenizer), config.seed, ready.places, start,
    )  # fmt: skip
    test = data.test.records[: config.data.test_limit or None]
    return Assembled(problem, tokenizer, test, Path(model_folder), prompts)


def _adapter(config: Config, decoder_config: "DecoderConfig") -> "tuple[Adapter, tuple[PyTree, PyTree] | None]":
    """The adapter, and the factors that adapter.path gives it to start with."""
    from bidora_jax.models import adapters, peft, targets

    adapter = adapters.resolve(config.adapter, decoder_config, strict=not config.adapter.path)
    if not config.adapter.path:
        return adapter, None
    loaded, *start = peft.load_adapter(config.adapter.path, decoder_config)
    wrong = targets.differences(adapter.sites, loaded.sites)
    if adapter.magnitude != loaded.magnitude:
        has = "a magnitude" if loaded.magnitude else "no magnitude"
        wrong.append(f"adapter.method is {config.adapter.method}, and the folder has {has}")
    if adapter.saved != loaded.saved:
        wrong.append(f"adapter.modules_to_save: {list(adapter.saved)}, found {list(loaded.saved)}")
    if adapter.subtracts:
        wrong.append(f"adapter.init {adapter.init} makes factors of its own, and the folder holds some already")
    if wrong:
        raise InputError(
            f"adapter.path {config.adapter.path} does not fit the settings of this run:\n{listing(wrong)}\n"
            "leave those settings out, and the folder gives its own"
        )
    return adapter, (start[0], start[1])


def _train(config: Config, problem: "Problem", loop: "Loop", checkpoints: "Checkpoints", first: "Settled"):
    """All phases from wherever the checkpoints stand; returns the (direction, magnitude) found."""
    from bidora_jax.training import phases

    search, standing = first.phase, first.standing
    latest = checkpoints.latest()
    in_search = latest is None or latest <= search.steps
    if in_search:
        standing = loop.run(search, _resumed(loop, checkpoints, search, standing))
        _say(search, standing)
    if config.adapter.method != "bidora" or not (config.retrain.epochs or config.retrain.steps):
        return standing.best
    begin = (config.retrain, config.inner)
    phase, fresh = phases.retrain(problem, *begin, standing.best, search.steps)
    if not in_search:
        resumed = _resumed(loop, checkpoints, phase, fresh)
        # The magnitude is the one the checkpoint holds, not the one this process started with.
        phase, _ = phases.retrain(problem, *begin, resumed.best, search.steps)
        fresh = resumed
    standing = loop.run(phase, fresh)
    _say(phase, standing)
    return standing.best


def _resumed(loop: "Loop", checkpoints: "Checkpoints", phase: "Phase", fresh: "Standing") -> "Standing":
    from bidora_jax.training.loop import restored

    latest = checkpoints.latest()
    if latest is None:
        loop.truncate(phase.name, 0)
        return fresh
    tree, info = checkpoints.restore(latest, {"state": fresh.state, "best": fresh.best})
    standing = restored(tree, info)
    loop.truncate(phase.name, standing.step + 1)
    print(f"resumed {phase.name} after step {standing.step} of {phase.steps}")
    return standing


def _finish(
    config: Config, parts: Assembled, direction, magnitude, before: "Answers | None", losses: "Losses | None"
) -> None:
    from bidora_jax import export, journal
    from bidora_jax.models import adapters, hf

    problem, folder = parts.problem, Path(config.output_dir)
    if losses is not None:
        loss = losses(direction, magnitude)
        journal.note(config, result_loss=loss)
        print(f"validation loss of the result {loss:.4f}")
    trained = (problem.config, problem.adapter, problem.base, direction, magnitude)
    export.write_adapter(folder / "adapter", config.adapter, config.model.path, *trained, replace=True)
    if config.merged:
        dtype = hf.source_dtype(parts.model_folder).name
        export.write_merged(folder / "merged", parts.model_folder, *trained, dtype=dtype, replace=True)
    if before is not None:
        after = answers(config, parts, adapters.merge(problem.adapter, problem.base, direction, magnitude))
        assert after is not None
        journal.note(config, exact_matches={"before": before.right, "after": after.right, "of": len(parts.test)})
        _compare_answers(parts.test, before, after)


def answers(config: Config, parts: Assembled, base: "PyTree") -> "Answers | None":
    """What a model without adapter answers to the test records; None where there are none."""
    from bidora_jax.training import conversation, evaluation

    if not parts.test:
        return None
    return evaluation.answer(
        parts.problem.config, base, parts.tokenizer, parts.test, max_new_tokens=config.max_new_tokens,
        ends=conversation.ends(parts.model_folder, parts.tokenizer),
    )  # fmt: skip


def _compare_answers(test: "list[Record]", before: "Answers", after: "Answers") -> None:
    from bidora_jax.training.records import question_text

    total = len(test)
    print(f"exact match on {total} test records: before {before.right} ({before.right / total:.0%}), "
          f"after {after.right} ({after.right / total:.0%})")  # fmt: skip
    print(f"\nfor example: {question_text(test[0])}\n--- before\n{before.texts[0]}\n--- after\n{after.texts[0]}\n---")


def _describe(config: Config, parts: Assembled) -> None:
    from bidora_jax.models import quantization
    from bidora_jax.models.adapters import count, trainable
    from bidora_jax.models.decoder import base_shapes

    problem = parts.problem
    groups = trainable(problem.adapter, problem.config)
    frozen, trained = count(base_shapes(problem.config, "float32")), sum(groups.values())
    print(f"model {config.model.path}: {frozen:,} frozen parameters in {problem.base['norm']['weight'].dtype}")
    for line in quantization.describe(problem.base):
        print(line)
    ranks = sorted({rank for site in problem.adapter.sites for rank in site.ranks if rank})
    print(f"{config.adapter.method}, rank {' and '.join(map(str, ranks)) if len(ranks) < 4 else f'{ranks[0]} to {ranks[-1]}'}: "
          + ", ".join(f"{name} {number:,} ({number / (frozen + trained):.4%})" for name, number in groups.items())
          + f"; padded to {', '.join(map(str, problem.buckets))}")  # fmt: skip
    print(f"trainable params: {trained:,} || all params: {frozen + trained:,} || "
          f"trainable%: {100 * trained / (frozen + trained):.4f}")  # fmt: skip


def _say(phase: "Phase", standing: "Standing") -> None:
    chosen = f", best validation loss {standing.best_loss:.4f} at step {standing.best_step}" if phase.selects else ""
    print(f"{phase.name}: {standing.step} of {phase.steps} steps{chosen}")


def _start_folder(config: Config) -> None:
    folder = Path(config.output_dir)
    target, temporary = folder / "config.json", folder / ".config.json.tmp"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(to_json(config), encoding="utf-8")
        temporary.replace(target)
    except OSError:  # a folder that is not empty would be refused by the next try
        temporary.unlink(missing_ok=True)
        folder.rmdir()
        raise


def _leaves(config: Config) -> dict[str, Any]:
    from bidora_jax.config import leaves

    return dict(leaves(config))


if __name__ == "__main__":
    command(main)
