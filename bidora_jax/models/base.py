"""The base tree: the frozen weights of a model, which every architecture lays out alike (architectures/architecture.py)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels import quantized, table
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.table import Columns, Table
from bidora_jax.models.architectures.architecture import EMBEDDING, HEAD, LAYERS, Architecture


def dense_shapes(architecture: Architecture, dtype) -> PyTree:
    """Shapes and dtypes of the base tree before anything is quantised. Nothing is allocated."""
    dtype = jnp.dtype(dtype)
    base: dict = {}
    for one in architecture.tensors:
        *parents, leaf = one.path
        subtree = base
        for name in parents:
            subtree = subtree.setdefault(name, {})
        shape = (architecture.num_layers, *one.shape) if one.stacked else one.shape
        subtree[leaf] = jax.ShapeDtypeStruct(shape, wide(dtype) if one.wide else dtype)
    return base


def dtype_of(base: PyTree):
    """The dtype that a model's products run in: that of its norms, which are never quantised and never trained."""
    leaves = jax.tree_util.tree_leaves_with_path(base[LAYERS], is_leaf=lambda node: not isinstance(node, dict))
    return next(leaf.dtype for path, leaf in leaves if path[-1].key == "weight" and getattr(leaf, "ndim", 0) == 2)


def embedding_of(base: PyTree) -> Any:
    """The input embedding (V, D), dense or quantised as the tree holds it."""
    return base[EMBEDDING]["weight"]


def embedded(base: PyTree, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """The rows of the input embedding, in the dtype that the tree holds them in."""
    weight = embedding_of(base)
    if quantized.is_quantised(weight):
        return quantized.rows(weight, tokens)
    return table.rows(weight, tokens)


def head_of(base: PyTree) -> Float[Array, "V D"]:
    """The output embedding, dense: the input embedding where the two are tied."""
    head = head_table_of(base)
    assert not isinstance(head, Columns), "on a mesh no device has the whole output embedding: see head_table_of"
    return head


def head_table_of(base: PyTree) -> Table:
    """The same (V, D), or what a device holds of it on a mesh that cuts it."""
    weight = base[HEAD]["weight"] if HEAD in base else embedding_of(base)
    return weight if isinstance(weight, Columns) else quantized.dense(weight).astype(weight.dtype)


def with_whole_modules(base: PyTree, direction: PyTree) -> PyTree:
    """The base with the modules that are trained whole, which stand in the direction, in place of the frozen ones.

    Tied embeddings come apart: the one that is not trained stays as it was.
    """
    whole = {name: direction[name] for name in (EMBEDDING, HEAD) if name in direction}
    return {**base, HEAD: base.get(HEAD, base[EMBEDDING]), **whole} if whole else base
