"""tasks/outputs.py: what a user reads of logits and values, and the mean of several models."""

import numpy as np
import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError
from bidora_jax.tasks import outputs
from bidora_jax.tasks.outputs import Member

LN3 = np.log(3.0)


def test_a_class_is_said_as_it_is_written_with_every_probability():
    labels = Labels("classification", ("1.0", "yes", "Nein"))
    found = outputs.answers(labels, outputs.shares(labels, np.array([[0, LN3, 0], [LN3, 0, LN3]], np.float32)))
    assert [answer["label"] for answer in found] == ["yes", "1.0"]
    assert found[0]["probabilities"] == pytest.approx({"1.0": 0.2, "yes": 0.6, "Nein": 0.2})
    assert sum(found[1]["probabilities"].values()) == pytest.approx(1, abs=1e-15)


def test_labels_are_those_at_the_threshold_or_above():
    labels = Labels("multilabel", ("a", "b", "c"))
    shares = outputs.shares(labels, np.array([[0.0, LN3, -LN3]]))
    assert shares == pytest.approx(np.array([[0.5, 0.75, 0.25]]))
    assert outputs.answers(labels, shares)[0]["labels"] == ["a", "b"]
    assert outputs.answers(labels, shares, threshold=0.25)[0]["labels"] == ["a", "b", "c"]
    assert outputs.answers(labels, shares, threshold=0.8)[0]["labels"] == []


def test_values_are_on_the_scale_of_the_file():
    one, two = (
        Labels("regression", names, mean=(3.0, 5.0)[:k], std=(2.0, 10.0)[:k])
        for k, names in ((1, ("x",)), (2, ("x", "y")))
    )
    assert outputs.answers(one, outputs.shares(one, np.array([[0.5]], np.float32))) == [{"value": 4.0}]
    assert outputs.answers(two, outputs.shares(two, np.array([[0.5, -1]]))) == [{"values": {"x": 4.0, "y": -5.0}}]


TAGS = Labels("tokens", ("I-PER", "B-PER", "O"))


def test_tags_and_spans_of_words():
    words = [["New", "Ada", "Lovelace", "came"], ["Bob"]]
    texts = [np.eye(3)[[2, 1, 0, 2]], np.eye(3)[[0]]]
    first, second = outputs.answers(TAGS, outputs.shares(TAGS, texts), words=words)
    assert first == {"tags": ["O", "B-PER", "I-PER", "O"],
                     "spans": [{"type": "PER", "start": 1, "end": 3, "text": "Ada Lovelace"}]}  # fmt: skip
    assert second["spans"] == [{"type": "PER", "start": 0, "end": 1, "text": "Bob"}]
    parts = Labels("tokens", ("X", "VERB", "NOUN"))
    assert outputs.answers(parts, texts, words=words)[1] == {"tags": ["X"], "spans": []}


def test_a_word_that_was_not_read_has_the_tag_o():
    of_words = outputs.by_word(np.eye(3)[[2, 1, 0]], np.array([1, -1, 2]))
    assert np.isnan(of_words[1]).all() and of_words[0].tolist() == [0, 1, 0]
    (found,) = outputs.answers(TAGS, outputs.shares(TAGS, [of_words]), words=[["Ada", "\u200b", "B."]])
    assert found["tags"] == ["B-PER", "O", "I-PER"] and len(found["spans"]) == 2


def test_members_are_averaged_by_the_names_of_their_labels():
    one, other = Labels("classification", ("a", "b", "c")), Labels("classification", ("c", "a", "b"))
    logits = np.random.default_rng(0).normal(size=(5, 3))
    mean = outputs.mean_shares([Member(one, logits), Member(other, logits)])
    own = outputs.shares(one, logits)
    np.testing.assert_allclose(mean, (own + own[:, [1, 2, 0]]) / 2, rtol=1e-12)
    np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-12)
    assert outputs.answers(one, mean)[0].keys() == {"label", "probabilities"}


def test_members_of_values_are_averaged_on_the_scale_of_the_file():
    one = Labels("regression", ("x", "y"), mean=(1.0, 2.0), std=(3.0, 4.0))
    other = Labels("regression", ("y", "x"), mean=(0.0, 10.0), std=(1.0, 2.0))
    mean = outputs.mean_shares([Member(one, np.array([[1.0, 2.0]])), Member(other, np.array([[1.0, 2.0]]))])
    np.testing.assert_allclose(mean, [[(4 + 14) / 2, (10 + 1) / 2]])


def test_members_of_texts_are_averaged_word_by_word():
    other = Labels("tokens", ("B-PER", "O", "I-PER"))
    texts = [np.random.default_rng(n).normal(size=(n, 3)) for n in (2, 4)]
    mean = outputs.mean_shares([Member(TAGS, texts), Member(other, [text[:, [1, 2, 0]] for text in texts])])
    for found, expected in zip(mean, outputs.shares(TAGS, texts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_members_with_other_labels_are_refused_by_name():
    one, logits = Labels("classification", ("a", "b")), np.zeros((1, 2))
    other, kind = Labels("classification", ("b", "d")), Labels("multilabel", ("a", "b"))
    with pytest.raises(InputError) as refused:
        outputs.mean_shares([Member(one, logits), Member(other, logits), Member(kind, logits)])
    assert "member 2: has 'd' and lacks 'a'" in str(refused.value)
    assert "member 3: its task is multilabel, not classification" in str(refused.value)
