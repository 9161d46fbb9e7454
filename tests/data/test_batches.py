"""Batches: fewest padding, every record once an epoch, an order that is a pure function, joint shapes."""

import itertools
import threading

import numpy as np
import pytest

from bidora_jax.data.batches import (
    WINDOW,
    BatchForm,
    LabelForm,
    Stream,
    bucket_lengths,
    collate,
    epoch_order,
    full_pass,
    joint,
    length_for,
    passes,
    prefetch,
)
from bidora_jax.data.encoding import Example
from bidora_jax.data.labels import LabelledExample
from bidora_jax.data.packing import PackedLabels

PAD = 99


def example(*tokens: int, prompt: int = 1) -> Example:
    """All tokens after the first `prompt` ones are trained."""
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) >= prompt, truncated=False)


def flat(steps: list[list[int]]) -> list[int]:
    return [index for step in steps for index in step]


# Lengths


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_buckets_have_the_least_padding_of_all_choices(count):
    lengths = np.random.default_rng(3).integers(1, 60, size=41).tolist()
    buckets = bucket_lengths(lengths, count, multiple=7)
    candidates = sorted({-(-length // 7) * 7 for length in lengths})

    def padded(chosen) -> int:
        return sum(min(bucket for bucket in chosen if bucket >= length) for length in lengths)

    choices = itertools.combinations(candidates, min(count, len(candidates)))
    assert padded(buckets) == min(padded(chosen) for chosen in choices if max(chosen) >= max(lengths))
    assert len(buckets) == min(count, len(candidates))


def test_buckets_by_hand():
    assert bucket_lengths([3, 5, 17, 33, 34], 2) == (16, 48)  # 2·16 + 3·48 = 176; (32, 48): 3·32 + 2·48 = 192
    assert bucket_lengths([3, 5, 17, 33, 34], 1) == (48,)
    assert bucket_lengths([16], 4) == (16,)


def test_length_for_is_the_next_bucket_up():
    assert length_for([example(1, 2, 3), example(*range(17))], (16, 32, 48)) == 32
    assert length_for([example(*range(16))], (16, 32)) == 16


# Order


@pytest.mark.parametrize(("n", "step_size"), [(1, 3), (6, 3), (7, 3), (500, 3), (23, 23), (23, 29)])
def test_every_record_comes_once_an_epoch_in_whole_steps(n, step_size):
    lengths = np.random.default_rng(n).integers(1, 400, size=n).tolist()
    steps = epoch_order(lengths, step_size, seed=1, epoch=2, stream=0)
    assert sorted(flat(steps)) == list(range(n))
    assert sorted(map(len, steps)) == sorted([step_size] * (n // step_size) + [n % step_size] * (n % step_size > 0))


def test_the_order_depends_on_seed_epoch_and_stream_and_on_nothing_else():
    lengths = [7] * 31
    orders = [
        flat(epoch_order(lengths, 3, seed=seed, epoch=epoch, stream=stream))
        for seed, epoch, stream in itertools.product(range(2), range(3), range(2))
    ]
    assert len(set(map(tuple, orders))) == len(orders)
    assert orders[0] == flat(epoch_order(lengths, 3, seed=0, epoch=0, stream=0))


def test_records_of_a_step_are_of_similar_length_and_steps_are_shuffled():
    step_size = 5
    lengths = np.random.default_rng(0).permutation(WINDOW * step_size).tolist()
    steps = epoch_order(lengths, step_size, seed=0, epoch=0, stream=0)
    spans = [max(lengths[i] for i in step) - min(lengths[i] for i in step) for step in steps]
    assert spans == [step_size - 1] * WINDOW  # one window: sorted through
    shortest = [min(lengths[i] for i in step) for step in steps]
    assert shortest != sorted(shortest)


def test_the_short_step_is_not_that_of_the_longest_records():
    lengths = list(range(13))
    short = {min(epoch_order(lengths, 6, seed=seed, epoch=0, stream=0), key=len)[0] for seed in range(40)}
    assert len(short) > 8


def test_any_step_of_a_stream_is_computed_without_those_before():
    lengths = np.random.default_rng(1).integers(1, 90, size=17).tolist()
    straight = Stream(lengths, 3, seed=4, stream=1)
    assert straight.steps_per_epoch == 6
    steps = [straight.indices(step) for step in range(20)]
    for step in (19, 0, 7, 6, 5):
        assert Stream(lengths, 3, seed=4, stream=1).indices(step) == steps[step]
        assert straight.indices(step) == steps[step]
    assert sorted(flat(steps[6:12])) == list(range(17))
    assert steps[:6] != steps[6:12]


# Batches


def test_collate_fills_micro_batches_row_by_row_and_pads_at_the_end():
    batch = collate([example(5, 6, 7), example(8, 9), example(3, prompt=1)], 4, BatchForm(M=2, B=2, pad_id=PAD))
    np.testing.assert_array_equal(
        batch["tokens"], [[[5, 6, 7, PAD], [8, 9, PAD, PAD]], [[3, PAD, PAD, PAD], [PAD, PAD, PAD, PAD]]]
    )
    np.testing.assert_array_equal(batch["loss_mask"], [[[0, 1, 1, 0], [0, 1, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    assert (batch["tokens"].dtype, batch["loss_mask"].dtype) == (np.int32, np.float32)


def test_a_token_equal_to_the_padding_keeps_its_mask():
    batch = collate([example(5, PAD)], 3, BatchForm(M=1, B=1, pad_id=PAD))
    np.testing.assert_array_equal(batch["loss_mask"], [[[0, 1, 0]]])


@pytest.mark.parametrize(("train", "val", "length"), [(3, 18, 32), (18, 3, 32), (3, 5, 16)])
def test_joint_batches_have_the_length_of_the_longer_one(train, val, length):
    pair = joint([example(*range(train))], [example(*range(val))], (16, 32, 48), BatchForm(M=3, B=2, pad_id=PAD))
    assert [batch["tokens"].shape for batch in pair] == [(3, 2, length)] * 2
    assert [int(batch["loss_mask"].sum()) for batch in pair] == [train - 1, val - 1]


def test_a_full_pass_trains_each_token_once_in_batches_of_equal_rows():
    lengths = np.random.default_rng(2).integers(2, 50, size=17)
    examples = [example(*range(100 * i, 100 * i + length)) for i, length in enumerate(lengths)]
    batches = list(full_pass(examples, bucket_lengths(lengths.tolist(), 3), BatchForm(M=2, B=5, pad_id=PAD)))
    seen = np.concatenate([batch["tokens"][batch["loss_mask"] > 0] for batch in batches])
    assert sorted(seen) == sorted(np.concatenate([e.tokens[1:] for e in examples]))
    assert [batch["tokens"].shape[:2] for batch in batches] == [(1, 5)] * 4
    trained = np.concatenate([batch["loss_mask"].sum(axis=-1).ravel() for batch in batches])
    assert trained.tolist() == [*sorted(lengths - 1), 0, 0, 0]
    assert len({batch["tokens"].shape for batch in batches}) <= 3


# Labels


def labelled(length: int, *labels: float, types: int = 0, record: int = 0) -> LabelledExample:
    """Tokens 10 r, 10 r + 1, …, the last `types` of them of the second text."""
    of_second = (np.arange(length) >= length - types).astype(np.int32)
    return LabelledExample(
        10 * record + np.arange(length, dtype=np.int32), of_second, np.array(labels, np.float32), False, record
    )


def test_a_batch_of_labelled_texts_has_lengths_labels_and_weights():
    form = BatchForm(M=2, B=2, pad_id=PAD, labels=LabelForm("sequence", width=3, types=True))
    given = [labelled(3, 0, 1, 0, types=1, record=1), labelled(2, 0.5, 0.5, 0, record=2), labelled(1, *[np.nan] * 3)]
    batch = collate(given, 4, form)
    assert list(batch) == ["tokens", "lengths", "types", "labels", "weights"]
    np.testing.assert_array_equal(batch["tokens"][0], [[10, 11, 12, PAD], [20, 21, PAD, PAD]])
    np.testing.assert_array_equal(batch["lengths"], [[3, 2], [1, 0]])
    np.testing.assert_array_equal(batch["types"][0], [[0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["labels"][:, :, 0], [[[0, 1, 0], [0.5, 0.5, 0]], [[0, 0, 0], [0, 0, 0]]])
    np.testing.assert_array_equal(batch["weights"], [[[1], [1]], [[0], [0]]])
    assert [batch[name].dtype.name for name in batch] == ["int32"] * 3 + ["float32"] * 2
    assert "types" not in collate(given, 4, form._replace(labels=LabelForm("sequence", width=3)))
    blank = collate([], 4, form)
    assert {name: (part.shape, part.dtype) for name, part in blank.items()} == {
        name: (part.shape, part.dtype) for name, part in batch.items()
    }


def test_a_packed_row_has_a_slot_for_each_document():
    form = BatchForm(1, 2, PAD, packed=True, labels=LabelForm("sequence", width=2, slots=3))
    tokens, segments = np.arange(5, dtype=np.int32), np.array([1, 1, 1, 2, 2], np.int32)
    row = PackedLabels(tokens, 0 * tokens, segments, np.array([[0, 1], [np.nan, np.nan]], np.float32), (7, 4))
    batch = collate([row], 7, form)
    assert list(batch) == ["tokens", "labels", "weights", "segments"]
    np.testing.assert_array_equal(batch["segments"][0], [[1, 1, 1, 2, 2, 0, 0], [0] * 7])
    np.testing.assert_array_equal(batch["labels"][0, 0], [[0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(batch["weights"][0], [[1, 0, 0], [0, 0, 0]])


def test_tokens_have_a_label_each_and_no_weights():
    form = BatchForm(1, 2, PAD, labels=LabelForm("token", width=5))
    given = labelled(3)._replace(labels=np.array([-1, 4, -1], np.int32))
    batch = collate([given], 5, form)
    np.testing.assert_array_equal(batch["labels"][0], [[-1, 4, -1, -1, -1], [-1] * 5])
    assert list(batch) == ["tokens", "lengths", "labels"] and batch["labels"].dtype == np.int32


def test_a_full_pass_says_which_rows_are_in_which_batch_and_a_text_alone_needs_one_slot():
    form = BatchForm(3, 2, PAD, packed=True, labels=LabelForm("sequence", width=1, slots=4))
    given = [labelled(length, 1, record=number) for number, length in enumerate((5, 2, 4))]
    assert [[len(one.tokens) for one in rows] for rows in passes(given, 2)] == [[2, 4], [5]]
    batches = list(full_pass(given, (8,), form))
    assert [batch["labels"].shape for batch in batches] == [(1, 2, 1, 1)] * 2
    assert [batch["lengths"].tolist() for batch in batches] == [[[2, 4]], [[5, 0]]]


# Prefetching


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_prefetch_gives_the_batches_in_order_and_ends_its_thread(depth):
    made = []
    assert list(prefetch(lambda step: made.append(step) or step * 10, 3, 8, depth)) == [30, 40, 50, 60, 70]
    assert list(prefetch(lambda step: made.append(step), 3, 3, depth)) == []
    assert made == [3, 4, 5, 6, 7]
    assert not prefetch_threads()


def test_prefetch_works_ahead_but_not_further_than_depth():
    made, third = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 2:
            third.set()
        return step

    batches = prefetch(make, 0, 10, depth=2)
    assert next(batches) == 0
    assert third.wait(timeout=30)  # 1 and 2 are made while 0 is in use
    assert made == [0, 1, 2]
    batches.close()
    assert made == [0, 1, 2]
    assert not prefetch_threads()


def test_an_exception_comes_out_at_its_step():
    def make(step: int) -> int:
        if step == 2:
            raise KeyError("step two")
        return step

    batches = prefetch(make, 0, 5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(KeyError, match="step two"):
        next(batches)
    assert not prefetch_threads()
