"""Functions that XLA's CPU backend computes by themselves, in loops that nothing around them is fused into.

XLA's fusion reckons with no costs on a CPU: the vector that a large loop multiplies by is made anew for each of its rows, and
what is computed in one shape for a product that takes it in another is indexed by divisions, element by element. A function
that is called, rather than inlined, is where that ends.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
T = TypeVar("T")


def outlined(function: Callable[P, T]) -> Callable[P, T]:
    """The function as a call that XLA does not inline on a CPU, and its derivative as another; elsewhere it is itself. It takes
    arrays alone."""
    plain: Callable = function
    called = _called(plain)

    def tangent(moving, *primals):
        """Without the value, which would share with it all that they are both made of, written out."""

        def of_moving(moving):
            return plain(*(moving.get(number, primal) for number, primal in enumerate(primals)))

        return jax.jvp(of_moving, ({number: primals[number] for number in moving},), (moving,))[1]

    tangent_called = _called(tangent)

    @jax.custom_jvp
    def call(*args):
        return called(*args)

    def call_jvp(primals, tangents):
        moving = {number: t for number, t in enumerate(tangents) if not isinstance(t, SymbolicZero)}
        return call(*primals), tangent_called(moving, *primals)

    call.defjvp(call_jvp, symbolic_zeros=True)

    @wraps(function)
    def here(*args: P.args, **kwargs: P.kwargs) -> T:
        return call(*args, **kwargs) if jax.default_backend() == "cpu" else function(*args, **kwargs)

    return here


def _called(function: Callable) -> Callable:
    @jax.jit
    @wraps(function)
    def called(*args):
        # The attribute is for this call, not for those that the function consists of.
        with set_xla_metadata(inlineable="true"):
            return function(*args)

    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return called(*args)

    return call
