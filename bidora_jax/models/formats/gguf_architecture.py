"""A decoder as llama.cpp names it: the keys of a GGUF file that say its shapes, and its tensors in llama.cpp's order of rows.

    llama, mistral → "llama"    qwen2 → "qwen2"    qwen3 → "qwen3"

llama.cpp rotates neighbouring pairs in "llama" and the two halves of a head in "qwen2" and "qwen3", as Hugging Face does in all of
them. So the rows of q and k of a "llama" are put in another order, head by head (`interleaved`): row 2i is the one that was i, row
2i+1 the one that was i + h/2. The scores q·k stay what they are.

Read from llama.cpp's own sources (src/llama-model.cpp, src/models, conversion/, 2026-10), where a key that it does not know is
passed over without a word: what it can't compute is refused here (`problems`).
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from bidora_jax.errors import InputError, listing
from bidora_jax.models.architectures import rope
from bidora_jax.models.architectures.architecture import EMBEDDING, HEAD, LAYERS, Place, TensorSpec, name_table
from bidora_jax.models.architectures.decoder import DecoderConfig

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture by the model_type of config.json."""
INSIDE = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""llama.cpp's name of a module in a layer."""
OUTSIDE = {EMBEDDING: "token_embd", "norm": "output_norm", HEAD: "output"}
FREQUENCIES = "rope_freqs.weight"


class Key(NamedTuple):
    """One entry of a GGUF file's metadata."""

    name: str
    kind: Literal["uint32", "float32", "bool", "string", "strings", "int32s", "float32s"]
    value: Any


def name_of(model_type: str, architecture: DecoderConfig) -> str:
    """llama.cpp's architecture for a model; InputError, listing every reason, where it computes something else."""
    name = ARCHITECTURES[model_type]
    if wrong := problems(architecture, name):
        raise InputError(
            f"llama.cpp can't express this model:\n{listing(wrong)}\nuse --format merged with another engine"
        )
    return name


def problems(architecture: DecoderConfig, name: str) -> list[str]:
    """What llama.cpp's architecture of that name can't compute of this one."""
    scaling, window = architecture.rope_scaling, architecture.window
    kind = None if scaling is None else scaling.kind
    heads = architecture.num_heads * architecture.head_dim
    checks = {
        f"a sliding window of {window} tokens in a context of {architecture.max_positions}: llama.cpp's {name} attends to all "
        f"tokens. Up to {window} tokens that is the same: for texts of that length set max_position_embeddings to {window} in "
        "the config.json of the base": window is not None and window < architecture.max_positions,
        f"rope scaling {kind} with these settings (llama.cpp's {name} reads no table of frequencies; its llama does)": scaling
        is not None
        and not by_keys(scaling)
        and name != "llama",
        f"head_dim {architecture.head_dim}, as heads x head_dim is {heads} and hidden_size {architecture.hidden_size} (in "
        "llama.cpp's qwen2 the two are one)": name == "qwen2" and heads != architecture.hidden_size,
        f"a bias of o_proj (llama.cpp's {name} has none)": architecture.o_bias and name != "llama",
        f"biases of the MLP (llama.cpp's {name} has none)": architecture.mlp_bias and name != "llama",
    }
    return [said for said, found in checks.items() if found]


def keys(architecture: DecoderConfig, name: str) -> list[Key]:
    """The keys of the shapes, in the order of llama.cpp's converter."""
    a = architecture
    found = [
        Key(f"{name}.block_count", "uint32", a.num_layers),
        Key(f"{name}.context_length", "uint32", a.max_position_embeddings),
        Key(f"{name}.embedding_length", "uint32", a.hidden_size),
        Key(f"{name}.feed_forward_length", "uint32", a.intermediate_size),
        Key(f"{name}.attention.head_count", "uint32", a.num_heads),
        Key(f"{name}.attention.head_count_kv", "uint32", a.num_kv_heads),
        *_rope_keys(a, name),
        Key(f"{name}.rope.freq_base", "float32", a.rope_theta),
        Key(f"{name}.attention.layer_norm_rms_epsilon", "float32", a.rms_norm_eps),
        Key(f"{name}.attention.key_length", "uint32", a.head_dim),
        Key(f"{name}.attention.value_length", "uint32", a.head_dim),
    ]
    if name == "llama":
        found += [
            Key("llama.vocab_size", "uint32", a.vocab_size),
            Key("llama.rope.dimension_count", "uint32", a.head_dim),
        ]
    return found


def _rope_keys(architecture: DecoderConfig, name: str) -> list[Key]:
    scaling = architecture.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return []
    # llama.cpp multiplies cos and sin by this key, and by 0.1·ln(factor) + 1 of its own where the type is yarn.
    own = max(1.0, 0.1 * math.log(scaling.factor) + 1) if by_keys(scaling) else 1.0
    gain = [Key(f"{name}.rope.scaling.attn_factor", "float32", scaling.gain / own)] if scaling.kind == "yarn" else []
    if not by_keys(scaling):
        return gain
    length = [Key(f"{name}.rope.scaling.original_context_length", "uint32", scaling.length)]
    return [
        Key(f"{name}.rope.scaling.type", "string", scaling.kind),
        Key(f"{name}.rope.scaling.factor", "float32", scaling.factor),
        *gain,
        *(length if scaling.kind == "yarn" else []),
    ]


def by_keys(scaling: rope.RopeScaling) -> bool:
    """Whether llama.cpp computes a stretch from keys. Of yarn it does the usual one: the keys yarn_beta_fast and yarn_beta_slow are
    there, and llama.cpp's llama, qwen2 and qwen3 don't read them."""
    usual = (scaling.fast, scaling.slow, scaling.whole) == (32, 1, True)
    return scaling.kind == "linear" or (scaling.kind == "yarn" and usual)


def frequency_factors(architecture: DecoderConfig) -> np.ndarray | None:
    """What llama.cpp divides the frequency of each pair by, (h/2,) float32; None where it knows the stretch by keys."""
    scaling = architecture.rope_scaling
    if scaling is None or by_keys(scaling):
        return None
    plain, _ = rope.frequencies(architecture.head_dim, architecture.rope_theta, None)
    stretched, _ = rope.frequencies(architecture.head_dim, architecture.rope_theta, scaling)
    return (plain / stretched).astype(np.float32)


class Tensor(NamedTuple):
    """A tensor of the file: where it stands in the base tree, and in how many heads its rows are reordered."""

    name: str
    place: Place
    spec: TensorSpec
    heads: int
    """0: its rows keep their order."""

    @property
    def narrow(self) -> bool:
        """Whether it is written in the dtype asked for; norms and biases stay float32, as llama.cpp wants them."""
        return len(self.spec.shape) > 1


def tensors(architecture: DecoderConfig, name: str) -> Iterator[Tensor]:
    """Every tensor of the model but `rope_freqs`, those outside the layers first."""
    specs = {one.path: one for one in architecture.tensors}
    for place in name_table(architecture).values():
        yield Tensor(tensor_name(place), place, specs[place.path], reordered(architecture, name, place.path))


def tensor_name(place: Place) -> str:
    """llama.cpp's name of a tensor of the base tree."""
    if place.layer is None:
        return f"{OUTSIDE[place.path[0]]}.{place.path[1]}"
    *module, kind = place.path[1:]
    return f"blk.{place.layer}.{INSIDE['.'.join(module)]}.{kind}"


def reordered(architecture: DecoderConfig, name: str, path: tuple[str, ...]) -> int:
    """In how many heads the rows of a weight or a bias are reordered; 0: they keep their order."""
    if name != "llama" or path[0] != LAYERS:
        return 0
    return {"q_proj": architecture.num_heads, "k_proj": architecture.num_kv_heads}.get(path[-2], 0)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, each head's two halves as neighbouring pairs; `heads` 0 leaves them."""
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
