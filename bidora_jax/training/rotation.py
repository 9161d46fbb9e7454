"""Folds that take turns as the validation split: both levels see every row, and never the same one in a step.

The rows of both splits are cut into folds of about as many rows as the validation split has. For a turn, which is as many steps as
pass over a fold once, m is trained on one fold, and A and B on rows of the others; then it is the next fold's turn. Of the others a
turn takes those that were taken least often until then.
"""

from collections.abc import Sequence

import numpy as np

from bidora_jax.data.batches import epoch_order

LOWER, UPPER = 3, 4  # streams of the data order, beside those of problem.py


class Rotation:
    """The rows of every step. A step's rows are the same whichever step is asked for before it."""

    def __init__(self, lengths: Sequence[int], val_rows: int, step_size: int, lower_steps: int, seed: int) -> None:
        """`lengths` of all rows; `val_rows` is the size of the validation split, that of a fold."""
        count = max(round(len(lengths) / val_rows), 2)
        order = np.random.default_rng([seed, LOWER, UPPER]).permutation(len(lengths))
        self.folds = [order[first::count] for first in range(count)]
        self.turn = -(-len(self.folds[0]) // step_size)
        """Steps of one."""
        self._lengths, self._step_size, self._lower_steps, self._seed = (
            np.asarray(lengths),
            step_size,
            lower_steps,
            seed,
        )
        self._taken = np.zeros(len(lengths), int)
        self._turns: list[tuple[list[list[int]], list[list[int]]]] = []

    def rows(self, number: int) -> tuple[list[list[int]], list[int]]:
        """(rows of each lower step, rows of the upper level) of a step counted from the phase's first."""
        turn, position = divmod(number, self.turn)
        while len(self._turns) <= turn:
            self._turns.append(self._next())
        lower, upper = self._turns[turn]
        first = position * self._lower_steps
        return lower[first : first + self._lower_steps], upper[position % len(upper)]

    def _next(self) -> tuple[list[list[int]], list[list[int]]]:
        """The rows of the turn after those that are known, step by step, on each level."""
        number = len(self._turns)
        own = number % len(self.folds)
        others = np.concatenate([fold for index, fold in enumerate(self.folds) if index != own])
        random = np.random.default_rng([self._seed, number, LOWER])
        chosen, wanted = np.zeros(0, int), self.turn * self._lower_steps * self._step_size
        while len(chosen) < wanted:
            by_use = others[np.lexsort((random.random(len(others)), self._taken[others]))]
            some = by_use[: wanted - len(chosen)]
            self._taken[some] += 1
            chosen = np.concatenate([chosen, some])
        return self._steps(chosen, number, LOWER), self._steps(self.folds[own], number, UPPER)

    def _steps(self, rows: np.ndarray, turn: int, stream: int) -> list[list[int]]:
        order = epoch_order(self._lengths[rows].tolist(), self._step_size, seed=self._seed, epoch=turn, stream=stream)
        return [rows[step].tolist() for step in order]
