"""python -m bidora_jax.data: what it shows of a run's data, and that it is what the run does.

show_data.py prints what data/statistics.py counts, as data/description.py puts it into words.
"""

import json

import numpy as np
import pytest
from tiny import write_records

from bidora_jax import show_data
from bidora_jax.data import description, statistics
from bidora_jax.data.batches import BatchForm, Stream, bucket_lengths, joint
from bidora_jax.data.bilevel_rows import Rotation
from bidora_jax.data.encoding import Example
from bidora_jax.data.records import record
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import command
from bidora_jax.models.formats import hf


def example(length: int) -> Example:
    return Example(np.arange(length, dtype=np.int32), np.arange(length) > 0, truncated=False)


def test_a_histogram_has_round_edges_and_every_length():
    assert statistics.histogram([3, 9, 10, 39]) == [(0, 4, 1), (5, 9, 1), (10, 14, 1), (15, 19, 0), (20, 24, 0), (25, 29, 0),
                                                 (30, 34, 0), (35, 39, 1)]  # fmt: skip
    assert statistics.histogram([7, 7]) == [(7, 7, 2)]
    lengths = np.random.default_rng(0).integers(100, 2000, size=57).tolist()
    bins = statistics.histogram(lengths)
    assert sum(one.records for one in bins) == 57 and len(bins) <= statistics.BINS
    for one in bins:
        assert one.records == sum(one.first <= length <= one.last for length in lengths)


@pytest.mark.parametrize("splits", ["fixed", "rotate"])
@pytest.mark.parametrize("lower_steps", [1, 3])
def test_an_epochs_padding_is_that_of_the_batches(lower_steps, splits):
    train, val = ([example(length) for length in np.random.default_rng(seed).integers(2, 90, size)]
                  for seed, size in ((0, 23), (1, 7)))  # fmt: skip
    settings = DataConfig(batch_size=2, accumulation=2, buckets=3)
    found = statistics.epoch(train, val, settings, splits=splits, lower_steps=lower_steps, seed=5)
    lengths = [[len(e.tokens) for e in part] for part in (train, val)]
    lower, upper = (Stream(part, 4, seed=5, stream=i) for i, part in enumerate(lengths))
    folds = Rotation([*lengths[0], *lengths[1]], 7, 4, lower_steps, 5)
    buckets = bucket_lengths([len(e.tokens) for e in [*train, *val]], 3)
    tokens = computed = 0
    for step in range(6):
        rows = [train[i] for i in lower.indices(step)]
        others = [val[i] for i in upper.indices(step // lower_steps)]
        if splits == "rotate":
            turned, held_out = folds.rows(step // lower_steps)
            rows, others = ([[*train, *val][i] for i in some] for some in (turned[step % lower_steps], held_out))
        others = others if step % lower_steps == lower_steps - 1 else []
        batches = joint(rows, others, buckets, BatchForm(2, 2, 0))[: 2 if others else 1]
        computed += sum(batch["tokens"].size for batch in batches)
        tokens += sum(len(e.tokens) for e in rows + others)
    assert (found.steps, found.tokens, found.computed, found.lengths) == (6, tokens, computed, buckets)
    assert found.padding == pytest.approx(1 - tokens / computed)


def test_conversations_with_several_answers_are_counted():
    def talk(*contents):
        return [{"role": role, "content": c} for role, c in zip(("user", "assistant") * 2, contents, strict=False)]

    one, two = ({"messages": talk(*"qa")}, {"messages": talk(*"qarb")})
    only_last = {"prompt": talk(*"qar"), "completion": talk(*"qb")[1:]}
    assert statistics.several_answers([record(value) for value in (one, two, only_last, {"text": "x"})]) == 1


def shown(capfd, *argv) -> str:
    command(show_data.main, [str(part) for part in argv])
    return capfd.readouterr().out


@pytest.fixture
def flags(model_folder, data_files):
    return ["--model.path", model_folder, "--data.train-file", data_files[0], "--data.val-file", data_files[1]]


def test_records_lengths_and_padding_are_shown_without_a_terminal(flags, capfd, data_files, monkeypatch):
    monkeypatch.setattr(hf, "load", None)  # no weights are read
    out = shown(capfd, *flags, "--records", "2", "--data.batch-size", "3")
    first = json.loads(data_files[0].read_text().splitlines()[0])
    asked = f"<|im_start|>user\n{first['instruction']}<|im_end|>\n<|im_start|>assistant\n"
    assert f"{asked}⟦{first['output']}<|im_end|>⟧\n" in out
    assert f"{data_files[0]}:1: " in out and f"{data_files[0]}:2: " in out and f"{data_files[0]}:3: " not in out
    assert "(trained text stands between ⟦ and ⟧)" in out and "\x1b" not in out
    assert "train: 23 records" in out and "val: 11 records" in out
    assert "search: 8 steps an epoch of 3 records on each level, padded to" in out
    assert "with data.packing: " in out


def test_a_terminal_gets_two_colours_and_escapes_stay_visible(flags, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = write_records(tmp_path / "data.jsonl", 5, 0)
    out = shown(capfd, *flags, "--data.train-file", file, "--records", "1")
    assert "\x1b[1;32m" in out and "\x1b[2m" in out and "⟦" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦" in shown(capfd, *flags, "--data.train-file", file, "--records", "1")
    assert description.visible("a\x1b[2J\tb\n") == "a\\x1b[2J\tb\n"


def test_packed_rows_cuts_and_what_is_not_trained_are_shown(flags, capfd, tmp_path):
    file = tmp_path / "talks.jsonl"
    turns = [{"role": role, "content": c} for role, c in zip(("user", "assistant") * 2, "qarb", strict=True)]
    file.write_text(
        "\n".join(map(json.dumps, [{"messages": turns}, {"text": "a" * 70}, {"instruction": "a" * 70, "output": "b"}]))
    )
    how = [
        "--data.train-file",
        file,
        "--data.packing",
        "--data.max-length",
        "64",
        "--data.long",
        "truncate",
        "--adapter.method",
        "lora",
        "--data.buckets",
        "1",
    ]
    out = shown(capfd, *flags, *how, "--records", "3")
    assert "2 records packed into 2 rows of 64 tokens" in out
    assert "1 conversations of train have several answers, and only the last one is trained" in out
    assert f"{file}:2: 64 tokens, 63 of them trained, cut at 64" in out
    assert f"{file}:3: 64 tokens, 0 of them trained, cut at 64: it is left out" in out
    assert "an epoch of 4 rows, padded to 64" in out and "with data.packing" not in out
    assert "⟦b<|im_end|>⟧" in out and "⟦a<|im_end|>⟧" not in out
    assert "⟦a<|im_end|>⟧" in shown(capfd, *flags, *how, "--data.loss-on", "turns")


def test_what_is_split_is_shown_and_counted(flags, capfd, tmp_path):
    """71 tokens in chunks of 32, 23 and 16; 41 in two; 9 in one."""
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ("a" * 70, "b" * 40, "c" * 8)))
    how = ["--data.train-file", file, "--data.max-length", "32", "--adapter.method", "lora", "--records", "1"]
    out = shown(capfd, *flags, *how)
    assert "train: 3 records, 121 tokens, 2 of more than 32 tokens split into 5" in out
    head = f"{file}:1: 71 tokens, 68 of them trained, split into 3 chunks of up to 32, of which this is the first"
    assert f"{head}\na⟦{'a' * 31}⟧\n" in out
    assert "train: 121 tokens, 115 of them trained (95.0%); a record or chunk has" in out
    assert "search: 2 steps an epoch of 4 records or chunks, padded to" in out and "; 121 tokens an epoch" in out
    assert "3 records in 6 pieces packed into 4 rows of 32 tokens" in shown(capfd, *flags, *how, "--data.packing")


def test_what_train_would_refuse_is_refused(flags, capfd):
    for argv, says in (
        ([*flags, "--data.max-length", "1"], "data.max_length must be at least 2"),
        ([*flags, "--records=-1"], "--records must be at least 0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(show_data.main, [str(part) for part in argv])
        assert stopped.value.code == 2 and says in capfd.readouterr().err


def test_pieces_keep_the_blanks_between_them(model_folder):
    tokenizer = load_tokenizer(model_folder)
    ids = tokenizer("ab cd", add_special_tokens=False)["input_ids"]
    mask = np.array([False, False, True, True, False])
    assert statistics.pieces(Example(np.array(ids), mask, False), tokenizer) == [
        ("ab", False),
        (" c", True),
        ("d", False),
    ]
