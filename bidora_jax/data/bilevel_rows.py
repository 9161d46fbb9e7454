"""Which rows each level of a bilevel step has.

    fixed     A and B are trained on the training split, m on the validation split
    rotate    folds of both take turns: both levels see every row, and never the same one in a step

For `rotate` the rows of both splits are cut into folds of about as many rows as the validation split has. For a turn, which is as
many steps as pass over a fold once, m is trained on one fold, and A and B on rows of the others; then it is the next fold's turn.
Of the others a turn takes those that were taken least often until then.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bidora_jax.data.batches import FOLD, OTHERS, TRAIN, VAL, Stream, epoch_order

BilevelRows = Callable[[int], tuple[list[list[int]], list[int]]]
"""(rows of each lower step, rows of the upper level) of a step, counted from the phase's first. Rows are those of train and then
of val. They are the same whichever step is asked for before."""


def bilevel_rows(
    splits: str, train: Sequence[int], val: Sequence[int], step_size: int, lower_steps: int, seed: int
) -> BilevelRows:
    """`splits` is search.splits; `train` and `val` are the lengths of their rows."""
    if splits == "rotate":
        return Rotation([*train, *val], len(val), step_size, lower_steps, seed).rows
    of_train, of_val = (
        Stream(lengths, step_size, seed=seed, stream=number) for number, lengths in ((TRAIN, train), (VAL, val))
    )

    def rows(number: int) -> tuple[list[list[int]], list[int]]:
        lower = [of_train.indices(number * lower_steps + step) for step in range(lower_steps)]
        return lower, [len(train) + row for row in of_val.indices(number)]

    return rows


class Turn(NamedTuple):
    """The rows of its steps on each level."""

    lower: list[list[int]]
    upper: list[list[int]]


class Rotation:
    """Folds that take turns as the validation split."""

    def __init__(self, lengths: Sequence[int], fold_size: int, step_size: int, lower_steps: int, seed: int) -> None:
        """`lengths` of all rows."""
        count = max(round(len(lengths) / fold_size), 2)
        order = np.random.default_rng([seed, FOLD, OTHERS]).permutation(len(lengths))
        self.folds = [order[first::count] for first in range(count)]
        self.turn_steps = -(-len(self.folds[0]) // step_size)
        self._lengths, self._step_size = np.asarray(lengths), step_size
        self._lower_steps, self._seed = lower_steps, seed
        self._taken = np.zeros(len(lengths), int)
        self._turns: list[Turn] = []

    def rows(self, number: int) -> tuple[list[list[int]], list[int]]:
        """See BilevelRows."""
        turn, step = divmod(number, self.turn_steps)
        while len(self._turns) <= turn:
            self._turns.append(self._next())
        lower, upper = self._turns[turn]
        first = step * self._lower_steps
        return lower[first : first + self._lower_steps], upper[step % len(upper)]

    def _next(self) -> Turn:
        """The turn after those that are known."""
        number = len(self._turns)
        own = number % len(self.folds)
        others = np.concatenate([fold for index, fold in enumerate(self.folds) if index != own])
        random = np.random.default_rng([self._seed, number, OTHERS])
        chosen, wanted = np.zeros(0, int), self.turn_steps * self._lower_steps * self._step_size
        while len(chosen) < wanted:
            by_use = others[np.lexsort((random.random(len(others)), self._taken[others]))]
            some = by_use[: wanted - len(chosen)]
            self._taken[some] += 1
            chosen = np.concatenate([chosen, some])
        return Turn(self._steps(chosen, number, OTHERS), self._steps(self.folds[own], number, FOLD))

    def _steps(self, rows: np.ndarray, turn: int, stream: int) -> list[list[int]]:
        order = epoch_order(self._lengths[rows].tolist(), self._step_size, seed=self._seed, epoch=turn, stream=stream)
        return [rows[step].tolist() for step in order]
