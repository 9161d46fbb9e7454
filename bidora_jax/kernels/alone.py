"""Functions that XLA's CPU backend computes by themselves, in loops that nothing around them is fused into.

XLA's fusion reckons with no costs on a CPU: the vector that a large loop multiplies by is made anew for each of its rows, and
what is computed in one shape for a product that takes it in another is indexed by divisions, element by element. A function
that is called, rather than inlined, is where that ends.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
T = TypeVar("T")


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """The function as a call that XLA does not inline on a CPU, and so its derivatives; elsewhere it is itself. It takes
    arrays alone."""

    @jax.jit
    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        # The attribute is for this call, not for those that the function consists of.
        with set_xla_metadata(inlineable="true"):
            return function(*args, **kwargs)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if jax.default_backend() != "cpu":
            return function(*args, **kwargs)
        with set_xla_metadata(inlineable="false"):
            return called(*args, **kwargs)

    return call
