"""What one pass over a function writes down for another pass over it, so that no large product is made twice.

    known(z, y) = z,    d known = dy        z is y, from an earlier pass at the same point
    tapped(x, …) = x                        its cotangent is handed out, or is known

The mixed product of a bilevel step differentiates the gradient of a loss where the gradient itself was just taken. Of the four
products that a derivative of a gradient takes with every frozen matrix, two are those of the gradient: with their values
known only the derivatives of the two are left. Whatever made a known value is code without a reader, which the compiler drops.
"""

import jax
from jaxtyping import Array, Float


@jax.custom_jvp
def with_value(value: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`value`, a constant, with all derivatives of y, which it is equal to."""
    del y
    return value


@with_value.defjvp
def _with_value_jvp(primals, tangents):
    return with_value(*primals), tangents[1]


@jax.custom_jvp
def with_value_first_order(value: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`value` with the first derivative of y, which it is equal to. How `value` itself was made to vary stays its own."""
    del y
    return value


@with_value_first_order.defjvp
def _with_value_first_order_jvp(primals, tangents):
    return primals[0], tangents[1]


@jax.custom_vjp
def expose_cotangent(x: Float[Array, "*n"], tap: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x. The cotangent of `tap`, whose values play no part, is that of x."""
    del tap
    return x


def _expose_cotangent_backward(tap, g):
    return g, g.astype(tap.dtype)


expose_cotangent.defvjp(lambda x, tap: (x, tap), _expose_cotangent_backward)


@jax.custom_vjp
def with_cotangent(x: Float[Array, "*n"], cotangent: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x, whose cotangent is known to be `cotangent`."""
    del cotangent
    return x


def _with_cotangent_backward(cotangent, g):
    return with_value(cotangent.astype(g.dtype), g), None


with_cotangent.defvjp(lambda x, cotangent: (x, cotangent), _with_cotangent_backward)
