"""Packing: rows that waste little, and a loss and gradients that can't tell a packed batch from its records one a row.

training/problem.py takes its batches from the rows.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, random_base

from bidora_jax.data.batches import BatchForm, Stream, collate, joint
from bidora_jax.data.encoding import Example, chunk_lengths
from bidora_jax.data.labels import LabelledExample
from bidora_jax.data.packing import capacity, count, describe, first_fit, pack, pack_all, pack_labelled, unused
from bidora_jax.models import stacks
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.compute import Compute
from bidora_jax.tasks import language_modeling
from bidora_jax.training import bilevel, objective, problem
from bidora_jax.training.state import init_state

PAD = 96
LENGTHS = (5, 11, 3, 8, 4)


def example(tokens, prompt: int = 1, record: int = 0) -> Example:
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) >= prompt, truncated=False, record=record)


def documents(lengths=LENGTHS, seed: int = 0, first: int = 0) -> list[Example]:
    """Records of unlike lengths, no token of one in another, numbered from `first` on."""
    letters = iter(np.random.default_rng(seed).permutation(CONFIG.vocab_size - 1))
    return [
        example([next(letters) for _ in range(length)], 1 + index % 2, first + index)
        for index, length in enumerate(lengths)
    ]


# Rows


def test_first_fit_decreasing_by_hand():
    # 8; 5 has no room beside it; 4 has, and fills the row; 3 and 3 go beside 5; 2 finds 1 left.
    assert first_fit([3, 8, 2, 5, 3, 4], 12) == [[1, 5], [3, 0, 4], [2]]
    assert first_fit([12, 12], 12) == [[0], [1]]
    assert first_fit([1] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_row_numbers_its_documents_and_keeps_what_is_trained():
    given = [example([1, 2, 3], 2, record=10), example([4, 5], record=11), example([6, 7, 8, 9], record=12)]
    (row,) = pack(given, 16, seed=0)
    np.testing.assert_array_equal(row.tokens, [6, 7, 8, 9, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(row.trained, [False, True, True, True, False, False, True, False, True])
    np.testing.assert_array_equal(row.segments, [1, 1, 1, 1, 2, 2, 2, 3, 3])
    assert row.documents == (12, 10, 11)
    batch = collate([row], 11, BatchForm(M=1, B=2, pad_id=PAD, packed=True))
    np.testing.assert_array_equal(batch["segments"][0], [[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0], [0] * 11])
    np.testing.assert_array_equal(batch["tokens"][0, 0, 9:], [PAD, PAD])
    np.testing.assert_array_equal(batch["loss_mask"][0, 0], [0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0])
    assert batch["segments"].dtype == np.int32
    assert "segments" not in collate(given, 11, BatchForm(M=1, B=3, pad_id=PAD))
    assert not collate([], 11, BatchForm(M=1, B=3, pad_id=PAD, packed=True))["segments"].any()


def test_every_record_stands_in_one_row_and_little_is_unused():
    lengths = np.minimum(np.random.default_rng(1).geometric(0.01, size=3000) + 1, 512)
    given = [example(np.arange(length), record=number) for number, length in enumerate(lengths)]
    rows = pack(given, 512, seed=3)
    assert sorted(number for row in rows for number in row.documents) == list(range(3000))
    assert max(len(row.tokens) for row in rows) <= 512
    assert all(len(row.tokens) == sum(lengths[list(row.documents)]) for row in rows)
    assert unused(rows, 512) < 0.02
    # A row is a mixture: the longest records do not stand together.
    spread = [np.ptp([given[number].tokens.size for number in row.documents]) for row in rows if len(row.documents) > 1]
    assert np.mean(spread) > 100


def test_rows_are_a_pure_function_of_the_seed_and_any_step_of_them_too():
    given = documents((4,) * 8)
    packs = [[row.documents for row in pack(given, 16, seed=seed)] for seed in (0, 0, 1, 2, 3)]
    assert packs[0] == packs[1]
    assert len({tuple(one) for one in packs}) > 1
    rows = pack(given, 16, seed=0)
    steps = [Stream([len(row.tokens) for row in rows], 2, seed=5, stream=1).indices(step) for step in range(9)]
    assert steps[7] == Stream([len(row.tokens) for row in pack(given, 16, seed=0)], 2, seed=5, stream=1).indices(7)


def test_the_chunks_of_a_record_are_documents_of_their_own_and_one_record():
    given = [example([1, 2, 3, 4], record=7), example([5, 6, 7], record=7), example([8, 9], record=8)]
    (row,) = pack(given, 16, seed=0)
    np.testing.assert_array_equal(row.tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(row.segments, [1, 1, 1, 1, 2, 2, 2, 3, 3])
    np.testing.assert_array_equal(row.trained, [False, True, True, True, False, True, True, False, True])
    assert row.documents == (7, 7, 8)
    assert count([row]) == count(given) == 2
    assert describe([row], 16) == "2 records in 3 pieces packed into 1 rows of 16 tokens, 43.8% of them unused"
    assert describe(pack(given[1:], 16, seed=0), 16).startswith("2 records packed into 1 rows")


def test_chunks_leave_few_places_of_rows_empty():
    """Of texts a tenth longer than a row, which make one full chunk and a short one; even halves would not fit together."""
    lengths = np.random.default_rng(0).normal(1100, 50, 3000).astype(int)

    def empty(chunks) -> float:
        given = [example(np.arange(length)) for length in chunks]
        return unused(pack(given, 1024, seed=0), 1024)

    assert empty(length for count in lengths for length in chunk_lengths(int(count), 1024)) < 0.025
    assert empty(half for count in lengths for half in (count // 2, count - count // 2) if count > 1024) > 0.4


def test_the_splits_share_one_room_and_a_message_names_the_records_of_a_row():
    rows, room = pack_all({"train": documents(), "val": documents((4, 4), first=5)}, 16, seed=0)
    assert room == 16
    assert sorted(number for row in rows["val"] for number in row.documents) == [5, 6]
    places = SimpleNamespace(places=("a", "b", "c", "d", "e", "f", "f"))
    assert problem.places_of(places, rows["val"], [0]) == ["f"]
    assert problem.places_of(places, documents(), [3, 1]) == ["d", "b"]
    assert capacity([documents((5, 4)), documents((3,))], 1024) == 16
    assert capacity([documents()], 19) == 32


def test_a_row_of_labelled_texts_has_the_labels_of_each():
    def labelled(length: int, *labels: float, record: int) -> LabelledExample:
        tokens = np.arange(length, dtype=np.int32)
        return LabelledExample(tokens, (tokens > 1).astype(np.int32), np.array(labels, np.float32), False, record)

    given = [labelled(3, 0, 1, record=10), labelled(2, 1, 0, record=11), labelled(4, np.nan, np.nan, record=12)]
    (row,) = pack_labelled(given, 16, seed=0)
    np.testing.assert_array_equal(row.tokens, [0, 1, 2, 3, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(row.types, [0, 0, 1, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(row.segments, [1, 1, 1, 1, 2, 2, 2, 3, 3])
    np.testing.assert_array_equal(row.labels, [[np.nan, np.nan], [0, 1], [1, 0]])
    assert row.documents == (12, 10, 11) and count([row]) == 3
    tagged = [one._replace(labels=np.full(len(one.tokens), number, np.int32)) for number, one in enumerate(given)]
    (row,) = pack_labelled(tagged, 16, seed=0)
    np.testing.assert_array_equal(row.labels, [2, 2, 2, 2, 0, 0, 0, 1, 1])


# The model's loss


def adapted(config=CONFIG):
    adapter = adapters.resolve(AdapterConfig(method="bidora", rank=3, target_modules=("q_proj", "v_proj")), config)
    base = initial.prepare_base(random_base(config), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    random = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32), direction)
    return adapter, base, direction, magnitude


def each_loss(config, chunk: int, batch, owners):
    """(base) to the loss of every document: `owners` (B, T) says whose token stands where, −1 nobody's."""
    adapter, _, direction, magnitude = adapted(config)

    batch = {name: jnp.asarray(part) for name, part in batch.items()}

    def loss(base):
        def one(number):
            mask = batch["loss_mask"][0] * (owners == number)
            part = {name: batch[name][0] for name in ("tokens", "segments") if name in batch} | {"loss_mask": mask}
            compute = Compute(attention_chunk=chunk)
            return language_modeling.token_loss_sum(config, adapter, compute, base, (direction, magnitude), part)[0]

        return jax.lax.map(one, jnp.arange(len(LENGTHS)))

    return loss


def packed_batch(given, room=32):
    rows = pack(given, room, seed=0)
    owners = np.full((len(rows), room), -1)
    for row, item in enumerate(rows):
        owners[row, : len(item.tokens)] = np.array(item.documents)[item.segments - 1]
    return collate(rows, room, BatchForm(1, len(rows), PAD, packed=True)), owners


def unpacked_batch(given):
    owners = np.where(np.arange(16) < np.array(LENGTHS)[:, None], np.arange(len(LENGTHS))[:, None], -1)
    return collate(given, 16, BatchForm(1, len(given), PAD)), owners


def test_positions_begin_anew_in_every_document():
    """No loss shows it: rotary attention knows distances only. But a row may be longer than the model's context."""
    starts, positions = stacks.documents(jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]]))
    np.testing.assert_array_equal(starts, [[0, 0, 0, 3, 3, 5, 6, 6], [0, 1, 1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]])


@pytest.mark.parametrize(("window", "chunk"), [(None, 64), (3, 4)])
def test_every_documents_loss_is_the_one_it_has_alone(window, chunk):
    config, given = replace(CONFIG, window=window), documents()
    base = adapted(config)[1]
    packed, owners = packed_batch(given)
    assert packed["tokens"].shape == (1, 1, 32) and packed["segments"].max() == len(LENGTHS)
    found = jax.jit(each_loss(config, chunk, packed, owners))(base)
    expected = jax.jit(each_loss(config, 64, *unpacked_batch(given)))(base)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    del packed["segments"]
    wrong = jax.jit(each_loss(config, chunk, packed, owners))(base)
    # Without segments all but the first of the row see those before them.
    assert np.abs(wrong - expected)[np.arange(len(LENGTHS)) != owners[0, 0]].min() > 1e-2


@pytest.mark.parametrize(("window", "chunk"), [(None, 64), (3, 4)])
def test_no_gradient_crosses_from_one_document_to_another(window, chunk):
    """Exactly none, of the documents' losses with respect to the embedding of every token."""
    config, given = replace(CONFIG, window=window, tie_word_embeddings=False), documents()
    base = adapted(config)[1]
    batch, owners = packed_batch(given)
    loss = each_loss(config, chunk, batch, owners)

    def of_embedding(embedding):
        return loss({**base, "embed_tokens": {"weight": embedding}})

    slopes = np.asarray(jax.jit(jax.jacrev(of_embedding))(base["embed_tokens"]["weight"]))  # (documents, V, D)
    for number, item in enumerate(given):
        for other in range(len(given)):
            found = slopes[other, item.tokens[:-1]]
            assert found.any(axis=-1).all() if other == number else not found.any()


def test_a_bilevel_step_on_packed_batches_is_that_on_unpacked_ones():
    """Both levels' trees after a step of two micro-batches, the exact hypergradient among them."""
    adapter, base, direction, magnitude = adapted()
    train, val, model = documents(), documents((6, 9, 4), seed=1), Compute()
    rows, room = pack_all({"train": train, "val": val}, 16, seed=0)
    tx = {"inner_tx": optax.adam(1e-2, eps_root=1e-16), "outer_tx": optax.sgd(1.0)}
    losses = {
        "inner_loss": objective.inner_loss(CONFIG, adapter, model),
        "outer_loss": objective.outer_loss(CONFIG, adapter, model),
    }

    @jax.jit
    def step(batches):
        state = init_state(direction, magnitude, key=jax.random.key(0), **tx)
        return bilevel.bilevel_step(state, base, *batches, **losses, **tx)[0][1:3]

    packed = joint(rows["train"], rows["val"], (room,), BatchForm(2, 2, PAD, packed=True))
    assert packed[0]["segments"].shape == (2, 2, 16)
    found, expected = step(packed), step(joint(train, val, (16,), BatchForm(2, 3, PAD)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (found[1], magnitude)), strict=True)) > 1e-3
