"""Trains phase by phase; writes the adapter, the merged model when asked, and compares answers before and after."""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bidora_jax.config import Config
from bidora_jax.errors import NotFinite, Stopped
from bidora_jax.runs import next_steps, rates, several_hosts
from bidora_jax.runs.assembly import RunInputs, describe
from bidora_jax.runs.folder import hold, start_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import PyTree

    from bidora_jax.data.batches import Batch, Examples
    from bidora_jax.data.records import Record
    from bidora_jax.generation.ensembles import Member
    from bidora_jax.models.formats.export import Trained
    from bidora_jax.planning.remat_choice import FirstPhase
    from bidora_jax.runs.label_files import Labelled
    from bidora_jax.tasks.evaluation import Answers
    from bidora_jax.tasks.task import Criterion, Scores
    from bidora_jax.training.checkpoint import Checkpoints
    from bidora_jax.training.loop import Loop, Phase, PhaseState
    from bidora_jax.training.problem import Problem


Losses: TypeAlias = "Callable[[PyTree, PyTree], Scores]"
"""(direction, magnitude) to the scores on some batches."""


class Tested(NamedTuple):
    """A model on the test records."""

    answers: "Answers | None"
    scores: "Scores | None"
    """None where no test record has a token that is trained."""


def run(
    config: Config,
    inputs: RunInputs,
    first: "FirstPhase",
    *,
    losses: "Losses | None" = None,
    make_loop: "Callable[..., Loop] | None" = None,
) -> None:
    """Trains, and writes the run folder. A rehearsal (runs/dry_run.py) brings a shorter validation and a loop that it times.

    Raises Stopped where a signal asks for it; the run can then go on from where it stopped.
    """
    from bidora_jax.runs import labelling, logs
    from bidora_jax.training.loop import Intervals, Loop

    problem, folder, began = inputs.problem, Path(config.output_dir), time.monotonic()
    score = scorer(problem, inputs.labelled)
    if inputs.labelled is not None and problem.val:
        labelling.check_criterion(problem.criterion, inputs.labelled.labels, problem.val)
    if losses is None and problem.val:
        losses = score(validation_batches(problem))
    describe(config, inputs)
    on_test = score(_padded(problem, inputs.test_rows)) if inputs.test_rows else None
    start = first.phase.adapter_of(first.start.state)
    before = Tested(answers(config, inputs), on_test(*start) if on_test else None)
    start_folder(config)
    with hold(folder):
        with (
            logs.begin(config, inputs) as log,
            several_hosts.checkpoints(folder / "checkpoints", config.keep) as checkpoints,
            nullcontext() if make_loop else several_hosts.interrupts(next_steps.to_go_on(config)) as signals,
        ):
            intervals = Intervals(config.eval_every, config.save_every, config.log_every)
            make_loop = make_loop or partial(Loop, interrupts=signals)
            loop = make_loop(losses, log, checkpoints, intervals, logs.watchers(config, inputs))
            if inputs.labelled is not None:
                name, higher = problem.criterion
                logs.note(config, criterion={"name": name, "higher_is_better": higher})
            if not first.phase.selects:
                logs.note(config, last_step_kept=True)
            if losses is not None:
                _score_start(config, losses, start)
            _go_on(config, checkpoints)
            try:
                direction, magnitude = _train(config, problem, loop, checkpoints, first)
            except NotFinite as error:
                logs.note(config, not_finite={"said": str(error), "step": error.step})
                raise
        try:
            _finish(config, inputs, direction, magnitude, before, losses, on_test)
            logs.end(config)
        except KeyboardInterrupt:
            raise Stopped(f"Ctrl-C after the last step, which is saved; {next_steps.to_go_on(config)}", 130) from None
    seconds = time.monotonic() - began
    print(f"finished in {seconds:.0f} s; {loop.waited / seconds:.1%} of it the device waited for data")
    print("\n".join(next_steps.after(config, inputs.question, labelled=inputs.labelled is not None)))


def _go_on(config: Config, checkpoints: "Checkpoints") -> None:
    """What a run that is resumed does first: it leaves checkpoints that are no good or too many, and takes over changed rates."""
    for line in checkpoints.set_ruined_aside(rates.ruined(Path(config.output_dir))):
        print(line, file=sys.stderr)
    checkpoints.remove_surplus()
    for line in rates.taken_over(config):
        print(line)


def _score_start(config: Config, losses: "Losses", start: "tuple[PyTree, PyTree]") -> None:
    """Notes the scores of the model before its first step, once in a run. They are no candidate for the best step."""
    from bidora_jax.runs import folder, logs

    if "validation_before" not in folder.read_facts(Path(config.output_dir)):
        found = losses(*start)
        logs.note(config, validation_before=found.facts)
        print(f"before training  validation {found.in_words}", flush=True)


def validation_batches(problem: "Problem") -> "list[Batch]":
    """The validation split, padded as it is evaluated; none where there is no such split."""
    return _padded(problem, problem.val) if problem.val else []


def _padded(problem: "Problem", rows: "Examples") -> "list[Batch]":
    """All rows once, padded to the lengths of the run, and beyond the largest one to the longest row."""
    from bidora_jax.data.batches import bucket_lengths, full_pass

    longest = bucket_lengths([len(row.tokens) for row in rows], 1)[0]
    buckets = problem.buckets if longest <= problem.buckets[-1] else (*problem.buckets, longest)
    return list(full_pass(rows, buckets, problem.form))


def scorer(problem: "Problem", labelled: "Labelled | None" = None) -> "Callable[[list[Batch]], Losses]":
    """From batches to the scores of an adapter on them, by (direction, magnitude). Batches of one shape share a program."""
    from bidora_jax.tasks import class_evaluation, evaluation
    from bidora_jax.tasks.classification import Classification

    adapter = replace(problem.adapter, dropout=0.0)
    if labelled is None:
        evaluate = evaluation.evaluator(problem.decoder, adapter, problem.model, spread=problem.spread)
    else:
        assert isinstance(problem.task, Classification)
        read = class_evaluation.reader(problem.task, problem.config, adapter, problem.model, problem.spread)
        evaluate = class_evaluation.evaluator(read, labelled.labels, problem.criterion)
    return lambda batches: lambda direction, magnitude: evaluate(problem.base, direction, magnitude, batches)


def _train(config: Config, problem: "Problem", loop: "Loop", checkpoints: "Checkpoints", first: "FirstPhase"):
    """Runs all phases, from the last checkpoint on where there is one; returns the (direction, magnitude) found."""
    from bidora_jax.training import phases

    search, at = first.phase, first.start
    latest = checkpoints.latest()
    in_search = latest is None or latest <= search.steps
    if in_search:
        at = loop.run(search, _resumed(loop, checkpoints, search, at))
        _say(search, at, problem.criterion)
    if config.adapter.method != "bidora" or not (config.retrain.epochs or config.retrain.steps):
        return at.best
    begin = (config.retrain, config.inner)
    phase, fresh = phases.retrain(problem, *begin, at.best, search.steps)
    if not in_search:
        resumed = _resumed(loop, checkpoints, phase, fresh)
        # The retrain phase is made anew with the magnitude of the checkpoint: this process has not searched for one.
        phase, _ = phases.retrain(problem, *begin, resumed.best, search.steps)
        fresh = resumed
    at = loop.run(phase, fresh)
    _say(phase, at, problem.criterion)
    return at.best


def _resumed(loop: "Loop", checkpoints: "Checkpoints", phase: "Phase", fresh: "PhaseState") -> "PhaseState":
    from bidora_jax.training.loop import restored

    latest = checkpoints.latest()
    if latest is None:
        loop.truncate(phase.name, 0)
        return fresh
    tree, info = checkpoints.restore(latest, {"state": fresh.state, "best": fresh.best})
    at = restored(tree, info)
    loop.truncate(phase.name, at.step + 1)
    print(f"resumed {phase.name} after step {at.step} of {phase.steps}")
    return at


def _finish(
    config: Config,
    inputs: RunInputs,
    direction,
    magnitude,
    before: Tested,
    losses: "Losses | None",
    on_test: "Losses | None",
) -> None:
    """Scores the result, and writes it."""
    from bidora_jax.generation import ensembles
    from bidora_jax.models.formats import export
    from bidora_jax.runs import label_files, logs
    from bidora_jax.training.loop import UNCHANGING

    problem, folder, splits = inputs.problem, Path(config.output_dir), {}
    if losses is not None:
        splits["validation"] = found = losses(direction, magnitude)
        result = {name: value for name, value in found.facts.items() if name not in UNCHANGING}
        logs.note(config, **{f"result_{name}": value for name, value in result.items()})
        in_words = (
            f"loss of the result {found.loss:.4f}" if inputs.labelled is None else f"of the result: {found.in_words}"
        )
        print(f"validation {in_words}")
    if on_test is not None and before.scores is not None:
        splits["test"] = after = on_test(direction, magnitude)
        logs.note(config, test={"before": before.scores.facts, "after": after.facts})
    base, direction, magnitude = problem.gathered((problem.base, direction, magnitude))
    trained = export.Trained(problem.config, problem.adapter, base, direction, magnitude)
    if inputs.labelled is not None:
        _write_outcomes(folder, inputs.labelled, splits)
        trained = label_files.as_written(trained, inputs.labelled, problem.pad_id)
    export.write_adapter(folder / "adapter", config.adapter, config.model.path, trained, replace=True)
    if before.answers is not None:
        after = answers(config, inputs, ensembles.Member(problem.adapter, direction, magnitude))
        assert after is not None
        logs.note(config, exact_matches={"before": before.answers.right, "after": after.right, "of": len(inputs.test)})
        _compare_answers(inputs.test, before.answers, after)
    if config.merged:
        _write_merged(config, inputs, trained)


def _write_merged(config: Config, inputs: RunInputs, trained: "Trained") -> None:
    """Writes the merged model, and scores it beside the adapter: its weights may be rounded."""
    from bidora_jax.generation import conversation
    from bidora_jax.models.formats import export, hf
    from bidora_jax.runs import exporting, yardstick

    folder = Path(config.output_dir) / "merged"
    dtype = hf.source_dtype(inputs.model_folder, config.model.dtype).name
    ends = () if inputs.labelled else conversation.ends(inputs.model_folder, inputs.tokenizer)
    export.write_merged(folder, inputs.model_folder, trained, dtype=dtype, ends=ends, replace=True)
    own = yardstick.read(config, trained.config) if inputs.labelled is None and dtype != "float32" else None
    if own is not None and own.splits:
        exporting.compare(own, trained, folder, "merged")


def answers(config: Config, inputs: RunInputs, trained: "Member | None" = None) -> "Answers | None":
    """The answers of the base, or of an adapter on it, to the test records; None where there are no such records."""
    from bidora_jax.generation import conversation, decoding, ensembles
    from bidora_jax.tasks import evaluation

    if not inputs.test:
        return None
    problem = inputs.problem
    members = {} if trained is None else {"": trained}
    base, members = ensembles.for_serving(problem.gathered(problem.base), members, None, False, ())
    return evaluation.answer(
        decoding.assemble(problem.decoder, base, *next(iter(members.values()), ())), inputs.tokenizer, inputs.test,
        max_new_tokens=config.max_new_tokens, ends=conversation.ends(inputs.model_folder, inputs.tokenizer),
    )  # fmt: skip


def _write_outcomes(folder: Path, labelled: "Labelled", splits: "Mapping[str, Scores]") -> None:
    """What the report shows of each split."""
    from bidora_jax.tasks import outcomes
    from bidora_jax.tasks.class_evaluation import LabelScores

    found = {split: one.found for split, one in splits.items() if isinstance(one, LabelScores)}
    outcomes.write(folder, labelled.labels, {split: (one.outputs, one.targets) for split, one in found.items()})


def _compare_answers(test: "list[Record]", before: "Answers", after: "Answers") -> None:
    from bidora_jax.data.prompts import question_text

    total = len(test)
    print(f"exact match on {total} test records: before {before.right} ({before.right / total:.0%}), "
          f"after {after.right} ({after.right / total:.0%})")  # fmt: skip
    print(f"\nfor example: {question_text(test[0])}\n--- before\n{before.texts[0]}\n--- after\n{after.texts[0]}\n---")


def _say(phase: "Phase", at: "PhaseState", criterion: "Criterion") -> None:
    best = f", best {criterion.in_words(at.best_rank)} at step {at.best_step}" if phase.selects else ""
    print(f"{phase.name}: {at.step} of {phase.steps} steps{best}")
