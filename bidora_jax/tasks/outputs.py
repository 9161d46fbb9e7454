"""From what a classifier computes to what a user reads: labels as they are written, probabilities, values, tags and spans.

    classification  {label, probabilities}          multilabel  {labels, probabilities}
    regression      {value} or {values}             tokens      {tags, spans}

Shares are the probabilities of classes (softmax) or labels (sigmoid), the values on the scale of the file, or the probabilities of
each word's tags. Those of several models are averaged, whatever order each of them has its labels in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError, listing
from bidora_jax.tasks import entities, metric_names, metrics

Answer = dict[str, Any]
"""What is predicted for a row, as JSON has it."""


class Member(NamedTuple):
    """A model of an ensemble: its labels, and its outputs (N, C), or of tokens (W, C) a text."""

    labels: Labels
    outputs: Any


def shares(labels: Labels, outputs: Any) -> Any:
    """Float64 probabilities or values of outputs, of the same shape; of tokens a list of them."""
    from scipy.special import expit, softmax

    if labels.type == "tokens":
        return [softmax(np.asarray(logits, np.float64), axis=1) for logits in outputs]
    if labels.type == "regression":
        return metrics.undone(labels, outputs)
    logits = np.asarray(outputs, np.float64)
    return softmax(logits, axis=1) if labels.type == "classification" else expit(logits)


def mean_shares(members: Sequence[Member]) -> Any:
    """The mean of the members' shares, in the order of the first one's labels. InputError unless all have the same labels."""
    first = members[0].labels
    wrong = [
        f"member {number}: {said}" for number, one in enumerate(members, 1) if (said := _differs(first, one.labels))
    ]
    if wrong:
        raise InputError(f"an ensemble needs members with the same labels; unlike the first one's:\n{listing(wrong)}")
    aligned = []
    for labels, outputs in members:
        order = [labels.names.index(name) for name in first.names]
        own = shares(labels, outputs)
        aligned.append([text[:, order] for text in own] if first.type == "tokens" else own[:, order])
    if first.type == "tokens":
        return [np.mean(texts, axis=0) for texts in zip(*aligned, strict=True)]
    return np.mean(aligned, axis=0)


def _differs(first: Labels, other: Labels) -> str:
    if other.type != first.type:
        return f"its task is {other.type}, not {first.type}"
    more, less = (sorted(set(a.names) - set(b.names)) for a, b in ((other, first), (first, other)))
    parts = [f"has {', '.join(map(repr, more))}"] * bool(more) + [f"lacks {', '.join(map(repr, less))}"] * bool(less)
    return " and ".join(parts)


def answers(
    labels: Labels, found: Any, *, threshold: float = 0.5, words: Sequence[Sequence[str]] | None = None
) -> list[Answer]:
    """An answer for each row of shares.

    A row has the labels whose probability is at least `threshold` (multilabel). `words` are those of each text (tokens); a word
    that the model has not read, of which the probabilities are NaN, has the tag O.
    """
    if labels.type == "tokens":
        if words is None:
            raise ValueError("tags are predicted for words: give the words of each text")
        return [_tagged(labels, text, own) for text, own in zip(found, words, strict=True)]
    of_row: dict[str, Callable[[np.ndarray], Answer]] = {
        "classification": lambda row: {"label": labels.names[row.argmax()], "probabilities": _by_name(labels, row)},
        "multilabel": lambda row: {
            "labels": [name for name, share in zip(labels.names, row, strict=True) if share >= threshold],
            "probabilities": _by_name(labels, row),
        },
        "regression": lambda row: {"value": float(row[0])} if len(row) == 1 else {"values": _by_name(labels, row)},
    }
    return [of_row[labels.type](row) for row in found]


def _by_name(labels: Labels, row: np.ndarray) -> dict[str, float]:
    return dict(zip(labels.names, map(float, row), strict=True))


def _tagged(labels: Labels, found: np.ndarray, words: Sequence[str]) -> Answer:
    tags = metrics.tags(labels, found)
    spans = entities.spans(tags) if metric_names.are_entities(labels.names) else []  # parts of speech mark none
    texts = [" ".join(words[start:end]) for _, start, end in spans]
    return {"tags": tags, "spans": [span._asdict() | {"text": text} for span, text in zip(spans, texts, strict=True)]}


def by_word(outputs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A text's outputs (T, C) at the first token of each word, at which it starts; NaN for a word that starts nowhere (−1)."""
    found = np.asarray(outputs, np.float32)[starts]
    found[np.asarray(starts) < 0] = np.nan
    return found
