"""Starts of the low-rank factors of one linear layer, and the change since a start that is not zero.

    kaiming          A uniform in ±1/√I, B = 0                              PEFT's True
    gaussian         A normal with deviation 1/r, B = 0
    pissa            A = √(S_r/s)·V_rᵀ, B = U_r·√(S_r/s)    W0 = U·S·Vᵀ     arXiv:2404.02948, Eq. 2-3
    pissa_niter_N    the same with a randomised SVD, N power iterations     arXiv:0909.4061, algorithms 4.4 and 5.1
    olora            A = R_r, B = Q_r                       W0 = Q·R        arXiv:2406.01775, algorithm 1

After a start (A0, B0) that is not zero the weight that is adapted is the residual W0 − s·B0·A0. PEFT writes the residual over
the base. Here the base stays as it is, quantised or not, and the change since the start is one product of twice the rank:

    W0 − s·B0·A0 + s·B·A = W0 + s·[B, −B0]·[A; A0]

which is exact where a residual would be rounded to the dtype of the base, and what an adapter for the original base holds.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bidora_jax.kernels.dora import Direction, Scale
from bidora_jax.kernels.precision import wide


def pissa(w0: Float[Array, "O I"], *, rank: int, scale: Scale) -> Direction:
    """The `rank` largest singular values and vectors; s·B·A is the best approximation of W0 of that rank."""
    u, s, vt = jnp.linalg.svd(w0.astype(wide(w0.dtype)), full_matrices=False)
    return _halves(u[:, :rank], s[:rank], vt[:rank], scale)


def randomised_pissa(
    key: Key[Array, ""], w0: Float[Array, "O I"], *, rank: int, scale: Scale, iterations: int
) -> Direction:
    """`pissa` of the part of W0 that a random subspace of `rank` columns holds after some power iterations."""
    w0 = w0.astype(wide(w0.dtype))

    def basis(x):
        return jnp.linalg.qr(x)[0]

    q = basis(w0 @ jax.random.normal(key, (w0.shape[1], rank), w0.dtype))
    q = jax.lax.fori_loop(0, iterations, lambda _, q: basis(w0 @ basis(w0.T @ q)), q)
    u, s, vt = jnp.linalg.svd(q.T @ w0, full_matrices=False)
    return _halves(q @ u, s, vt, scale)


def _halves(u: Float[Array, "O r"], s: Float[Array, " r"], vt: Float[Array, "r I"], scale: Scale) -> Direction:
    root = jnp.sqrt(s / scale)
    return Direction(root[:, None] * vt, u * root[None, :])


def olora(w0: Float[Array, "O I"], *, rank: int) -> Direction:
    """The first `rank` columns and rows of a QR decomposition."""
    q, r = jnp.linalg.qr(w0.astype(wide(w0.dtype)))
    return Direction(r[:rank], q[:, :rank])


def change_since(direction: Direction, start: Direction) -> Direction:
    """B·A − B0·A0 as one product; of one layer or of a stack of them."""
    a = jnp.concatenate([direction.A, start.A], axis=-2)
    return Direction(a, jnp.concatenate([direction.B, -start.B], axis=-1))
