"""Values that an earlier pass at the same point has computed, with the derivatives of what would compute them.

    with_value(z, y) = z                  ż = ẏ          z equals y
    with_value_first_order(z, y) = z      ż = ẏ, once    how z itself was made to vary stays its own
    expose_cotangent(x, zeros) = x        x̄ = g, and the cotangent of `zeros` is g too
    with_cotangent(x, c) = x              x̄ = c, which equals g

The mixed product of a bilevel step differentiates a gradient that was taken just before. A derivative of a gradient takes four
products with every frozen matrix. Two of them are the gradient's own. Where their values are known, the code that would
compute them has no reader, and the compiler drops it.
"""

import jax
from jaxtyping import Array, Float


@jax.custom_jvp
def with_value(value: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`value`, which equals y, with all derivatives of y."""
    del y
    return value


@with_value.defjvp
def _with_value_jvp(primals, tangents):
    return with_value(*primals), tangents[1]


@jax.custom_jvp
def with_value_first_order(value: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`value`, which equals y, with the first derivative of y. Its second derivative is that of `value`."""
    del y
    return value


@with_value_first_order.defjvp
def _with_value_first_order_jvp(primals, tangents):
    return primals[0], tangents[1]


@jax.custom_vjp
def expose_cotangent(x: Float[Array, "*n"], zeros: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x. The cotangent of `zeros`, whose values are not read, is the cotangent of x."""
    del zeros
    return x


def _expose_cotangent_backward(zeros, g):
    return g, g.astype(zeros.dtype)


expose_cotangent.defvjp(lambda x, zeros: (x, zeros), _expose_cotangent_backward)


@jax.custom_vjp
def with_cotangent(x: Float[Array, "*n"], cotangent: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x, whose cotangent is known to be `cotangent`."""
    del cotangent
    return x


def _with_cotangent_backward(cotangent, g):
    return with_value(cotangent.astype(g.dtype), g), None


with_cotangent.defvjp(lambda x, cotangent: (x, cotangent), _with_cotangent_backward)
