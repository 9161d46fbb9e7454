"""Functions that XLA's CPU backend compiles as calls, so that it fuses nothing around them into them.

    outlined(function)(*args) = function(*args)

XLA's fusion has no cost model on a CPU. It recomputes the vector that a large loop multiplies by for each row of the loop. An
array that is computed in one shape and read in another is indexed by a division for each element. A call that is not inlined
ends the fusion.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from bidora_jax.kernels.xla_cpu import active

P = ParamSpec("P")
T = TypeVar("T")


def outlined(function: Callable[P, T]) -> Callable[P, T]:
    """The function as a call that XLA does not inline, and its tangent as another call. It takes arrays alone."""
    plain: Callable = function
    called = _called(plain)

    def tangent(moving, *primals):
        """The tangent without the value: together, all that both depend on would be written to memory."""

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
        return call(*args, **kwargs) if active() else function(*args, **kwargs)

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
