"""The encoders: BERT, RoBERTa, DistilBERT, ELECTRA, ESM-2, ModernBERT and DeBERTa; where they differ is data of EncoderConfig.

    x ← norm(E[tokens] + types + positions);   for each layer:  x ← norm(x + attention(x));  x ← norm(x + mlp(x))
    or, with the norm first:                   x ← x + attention(norm(x));  x ← x + mlp(norm(x));   at the end norm(x)

The scan, the linear layers, tapes and dtypes are the decoder's (decoder.py). Attention looks both ways. A row is one document,
padded on the right, whose length `lengths` says, or several, which `segments` tells apart: a token sees its own document, and its
positions count from 0 in it, so a text's hidden states are the same alone, padded and packed. Those of padding are finite and
mean nothing.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import norms, rope
from bidora_jax.kernels.activations import activate, gated
from bidora_jax.kernels.disentangled import position_scores
from bidora_jax.kernels.encoder_attention import recomputed, segment_attention
from bidora_jax.models import encoder_inputs, stacks
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import LinearSpec, Role
from bidora_jax.models.architectures.encoder import NORM, TERMS, EncoderConfig, RelativePositions
from bidora_jax.models.base import dtype_of, with_whole_modules
from bidora_jax.models.compute import Compute
from bidora_jax.models.encoder_inputs import Batch, Given, Own
from bidora_jax.models.layer_scan import Layer
from bidora_jax.models.linear import Linear, side_by_side
from bidora_jax.models.stacks import Stacks, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues


class LayerNorm(nn.Module):
    eps: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        weight = self.variable("base", "weight", jnp.ones, shape, x.dtype).value
        bias = self.variable("base", "bias", jnp.zeros, shape, x.dtype).value if self.use_bias else None
        return norms.layer_norm(x, weight, bias, eps=self.eps)


class EncoderLayer(nn.Module):
    """One layer. Its variables are one slice of the stacked trees, by paths: {'attention.self.query': {'weight': …}}."""

    config: EncoderConfig
    adapter: Adapter | None
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x, given: Given, own: Own):
        c = self.config
        attention_norm, mlp_norm = (
            LayerNorm(c.eps, c.norm_bias, name=name) for name in (c.names.attention_norm, c.names.mlp_norm)
        )
        if c.norm_first:
            normed = attention_norm(x) if c.first_norm else jnp.where(own.first, x, attention_norm(x))
            x = x + _attention(self, normed, given, own)
            return x + _mlp(self, mlp_norm(x))
        x = attention_norm(x + _attention(self, x, given, own))
        x = mlp_norm(x + _mlp(self, x))
        if given.convolution is None:
            return x
        added, norm = given.convolution
        return jnp.where(own.first, encoder_inputs.normed(c, norm, x + added), x)


def _attention(layer: EncoderLayer, x, given: Given, own: Own) -> Float[Array, "B T D"]:
    c, chunk = layer.config, layer.compute.attention_chunk
    if c.relative is None or given.relative is None:
        (q, k, v), scale, bias = _projected(layer, ("q", "k", "v"), x), c.head_dim**-0.5, None
    else:
        q, k, v, key_rows, query_rows = _projected_with_positions(layer, x, c.relative, given.relative)
        scale = (c.head_dim * (1 + len(c.relative.terms))) ** -0.5
        bias = position_scores(k, key_rows, query_rows, chunk=chunk, scale=scale)
    if given.angles is not None:
        cos, sin = (table[0 if own.rotation is None else own.rotation] for table in given.angles)
        q, k = rope.rope(q, cos, sin), rope.rope(k, cos, sin)
    out = segment_attention(q, k, v, given.segments, chunk=chunk, window=own.window, bias=bias, scale=scale)
    out = out.reshape(x.shape)
    # Where the backward pass computes the scores anew, it does so once if the result is saved, else twice.
    (spec,) = _specs(c, ("o",))
    return _linear(layer, spec, saves_input=recomputed(q, chunk), exposes_input=True)(out)


def _mlp(layer: EncoderLayer, x) -> Float[Array, "B T D"]:
    up, *gated_by = _projected(layer, ("gate", "up"), x)
    (spec,), kind = _specs(layer.config, ("down",)), layer.config.activation
    return _linear(layer, spec)(gated(up, gated_by[0], kind) if gated_by else activate(up, kind))


def _projected(layer: EncoderLayer, roles: tuple[Role, ...], x) -> list[Array]:
    """What each of these linear layers makes of x, one matrix of several roles cut into its parts; of attention, by heads."""
    specs = _specs(layer.config, roles)
    outs = side_by_side([_linear(layer, spec) for spec in specs], x)
    parts = [part for spec, out in zip(specs, outs, strict=True) for part in jnp.split(out, len(spec.roles), axis=-1)]
    if "up" in roles:
        return parts
    return [part.reshape(*x.shape[:-1], layer.config.num_heads, -1) for part in parts]


def _projected_with_positions(layer: EncoderLayer, x, relative: RelativePositions, rows: Float[Array, "R D"]):
    """q, k and v of x, and of the rows of relative positions the keys and the queries that the model has a term for."""
    if relative.shared:
        # One product: an adapter of these layers acts on the rows too, as it does in PEFT, which calls the layers twice.
        batch, length, width = x.shape
        both = _projected(layer, ("q", "k"), jnp.concatenate([x.reshape(-1, width), rows]))
        q, k = (part[: batch * length].reshape(batch, length, *part.shape[1:]) for part in both)
        of_rows = dict(zip(("p2c", "c2p"), (part[batch * length :] for part in both), strict=True))
        (v,) = _projected(layer, ("v",), x)
    else:
        q, k, v = _projected(layer, ("q", "k", "v"), x)
        of_rows = {term: _projected(layer, (role,), rows)[0] for role, term in TERMS.items() if term in relative.terms}
    return q, k, v, *(of_rows[term] if term in relative.terms else None for term in ("c2p", "p2c"))


def _specs(config: EncoderConfig, roles: Sequence[Role]) -> list[LinearSpec]:
    return [spec for spec in config.linears if spec.roles[0] in roles]


def _linear(layer: EncoderLayer, spec: LinearSpec, *, saves_input=False, exposes_input=False) -> Linear:
    adapted = None if layer.adapter is None else layer.adapter.at(spec.path)
    parts = (
        spec.in_features,
        spec.out_features,
        layer.config.has_bias(spec),
        adapted,
        layer.compute,
        saves_input,
        exposes_input,
    )
    return Linear(*parts, name=spec.path)


def hidden(
    config: EncoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
    tape: EmptyTape | TapeValues | None = None,
) -> Float[Array, "B T D"]:
    """The last hidden states, normed where the norm comes first. Otherwise as `decoder.hidden`. ValueError for cuDNN's
    attention."""
    if compute.fused:
        raise ValueError("encoders have no fused attention: take chunked attention")
    stacked, layer = parts(config, adapter, compute, base, trained, batch, key)
    x = stacked.applied(layer, compute, tape)
    x = x.astype(compute.dtype or dtype_of(base))
    return encoder_inputs.normed(config, base[NORM], x) if config.norm_first else x


def parts(
    config: EncoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
) -> tuple[Stacks, Layer]:
    """What the scan over layers takes, and the layer that it applies."""
    base = with_whole_modules(base, trained[0])
    return _stacked(config, compute, base, trained, batch, key), _layer(config, adapter, compute)


def empty_tape(
    config: EncoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    means: Array | None,
) -> EmptyTape:
    """The empty tape of a pass over this batch, with remat `dots` of its layers, and with these `means` of its head."""
    stacked, layer = parts(config, adapter, compute, base, trained, batch)
    return stacked.empty_tape(layer, compute, means)


def _stacked(config: EncoderConfig, compute: Compute, base: PyTree, trained: Trained, batch: Batch, key) -> Stacks:
    segments = stacks.segments_of(batch)
    positions = stacks.documents(segments)[1]
    x = encoder_inputs.embed(config, base, batch, segments, positions, compute.dtype or dtype_of(base))
    given = encoder_inputs.given(config, base, segments, positions, x)
    return stacks.stacked(base, trained, x, given, key, own=encoder_inputs.own(config))


def _layer(config: EncoderConfig, adapter: Adapter | None, compute: Compute) -> Layer:
    layer = EncoderLayer(config, adapter, compute)

    def apply(variables, x, given, own, **how):
        variables = {name: _by_path(tree) for name, tree in variables.items()}
        return layer.apply(variables, x, given, own, **how)

    return stacks.as_layer(apply)


def _by_path(tree: PyTree, path: str = "") -> dict[str, PyTree]:
    """{'attention': {'self': {'query': leaves}}} as {'attention.self.query': leaves}."""
    if not any(isinstance(part, dict) for part in tree.values()):
        return {path: tree} if path else tree
    found = {}
    for name, part in tree.items():
        found |= _by_path(part, f"{path}.{name}" if path else name)
    return found
