"""Trains the quickstart's tokenizer and model from nothing and writes them as a Hugging Face folder.

    python -m bidora_jax.quickstart.make_model [--output DIR] [--steps N]

A Qwen3 of 0.9M parameters learns the generated text of `corpus` with this package's own decoder: every weight is
trained, in float32, with Muon on the layers' matrices (arXiv:2502.16982, updates scaled to the size of Adam's) and
AdamW on the rest. What follows from the rest of a document weighs 1 in the loss, what is given and random weighs
GIVEN_WEIGHT. Weights are written in bfloat16.
"""

import argparse
import random
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bidora_jax.machine.files import staged, write_json
from bidora_jax.models.adapters.adapter import get
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dense_shapes
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import safetensors_file
from bidora_jax.models.formats.hf import name_table
from bidora_jax.quickstart.corpus import Turn, document
from bidora_jax.tasks.language_modeling import token_loss_sum

SEED = 20261123
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
END_OF_TEXT_ID, END_ID = 0, 2
"""Ids of the first and the third special token: the trainer numbers them first."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STEPS, BATCH, PEAK = 1500, 12, 8e-3
GIVEN_WEIGHT = 0.2
ROW = 160
"""Tokens in a training row; documents are packed into it, longer ones are left out (1 in 100)."""
OPEN_ROWS = 16

Row = tuple[list[int], list[float]]

CONFIG = DecoderConfig(
    vocab_size=704,
    hidden_size=128,
    intermediate_size=320,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=48,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
    o_bias=False,
    max_position_embeddings=512,
)

# Qwen's pre-tokenizer: words with the sign or space before them, single digits, runs of signs, white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with single digits; any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, documents: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss weights (N, ROW): documents whole, in the first open row with room; padding weighs 0."""
    given = tokenizer.encode_batch([turn[0] for turn in documents])
    answers = tokenizer.encode_batch([turn[1] for turn in documents])
    full: list[Row] = []
    opened: list[Row] = []
    for before, after in zip(given, answers, strict=True):
        ids = before.ids + after.ids
        if len(ids) > ROW:
            continue
        row = next((row for row in opened if len(row[0]) + len(ids) <= ROW), None)
        if row is None:
            row = ([], [])
            opened.append(row)
        row[0].extend(ids)
        row[1].extend([GIVEN_WEIGHT] * len(before.ids) + [1.0] * len(after.ids))
        if len(opened) > OPEN_ROWS:
            full.append(opened.pop(0))
    tokens = np.zeros((len(full), ROW), np.int32)
    weights = np.zeros((len(full), ROW), np.float32)
    for index, (ids, row_weights) in enumerate(full):
        tokens[index, : len(ids)], weights[index, : len(ids)] = ids, row_weights
    return tokens, weights


def init_base(key: jax.Array) -> PyTree:
    """Norms 1, embedding 0.02, matrices normal with variance 1/in, or 1/(2·L·in) where they write to the residual."""
    shapes = dense_shapes(CONFIG, jnp.float32)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)

    def one(index, path, shape):
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.ones(shape.shape, shape.dtype)
        scale = 0.02 if "embed" in name else shape.shape[-1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            scale *= (2 * CONFIG.num_layers) ** -0.5
        return scale * jax.random.normal(jax.random.fold_in(key, index), shape.shape, shape.dtype)

    return jax.tree.unflatten(structure, [one(index, *leaf) for index, leaf in enumerate(leaves)])


def make_optimizer(peak: float, steps: int) -> optax.GradientTransformation:
    """Muon on the stacked (L, O, I) matrices, AdamW on embedding and norms; linear warmup, cosine decay."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, 0.02 * peak)

    def dimensions(params):
        matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
        return jax.tree.map(lambda leaf: matrix if leaf.ndim == 3 else None, params)

    muon = optax.contrib.muon(
        schedule, weight_decay=0.01, adam_b2=0.99, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_step(
    tx: optax.GradientTransformation, base: PyTree, state: optax.OptState, tokens: jax.Array, weights: jax.Array
):
    """One step of plain language modelling on every weight. Returns the weighted mean loss too."""

    compute, batch = Compute(remat="none", loss_chunk=tokens.size), {"tokens": tokens, "loss_mask": weights}

    def loss(base):
        total, count = token_loss_sum(CONFIG, None, compute, base, ({}, {}), batch)
        return total / count

    value, gradient = jax.value_and_grad(loss)(base)
    updates, state = tx.update(gradient, state, base)
    return optax.apply_updates(base, updates), state, value


def pretrain(tokens: np.ndarray, weights: np.ndarray, steps: int, log_every: int = 100) -> PyTree:
    """The trained base tree. Row order is the order of generation, each row is seen once."""
    tx = make_optimizer(PEAK, steps)
    base = init_base(jax.random.key(SEED))
    state = tx.init(base)
    started, losses = time.monotonic(), []
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        base, state, loss = train_step(tx, base, state, jnp.asarray(tokens[rows]), jnp.asarray(weights[rows]))
        losses.append(loss)
        if (step + 1) % log_every == 0:
            mean = float(np.mean([float(value) for value in losses[-log_every:]]))
            print(f"step {step + 1}/{steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return base


def config_json() -> dict:
    """CONFIG in the words of a Qwen3 config.json, both spellings of the rotation's base."""
    c = CONFIG
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attention_bias": c.qkv_bias,
        "attention_dropout": 0.0,
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": END_OF_TEXT_ID,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def tokenizer_config_json() -> dict:
    """The tokenizer's settings, its chat template included."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "bos_token": None,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }


def write_folder(folder: Path, tokenizer: Tokenizer, base: PyTree) -> None:
    """A Hugging Face model folder, weights in bfloat16."""
    generation = {"eos_token_id": [END_ID, END_OF_TEXT_ID], "pad_token_id": END_OF_TEXT_ID, "do_sample": False}
    with staged(folder, replace=True) as fresh:
        write_json(fresh / "config.json", config_json())
        write_json(fresh / "generation_config.json", generation)
        write_json(fresh / "tokenizer_config.json", tokenizer_config_json())
        tokenizer.save(str(fresh / "tokenizer.json"))
        tensors = {}
        for name, place in name_table(CONFIG).items():
            leaf = np.asarray(get(base, ".".join(place.path)).astype(jnp.bfloat16))
            tensors[name] = leaf if place.layer is None else leaf[place.layer]
        safetensors_file.write(fresh / "model.safetensors", tensors, tensors.values())


def main(output: Path, steps: int) -> None:
    rng = random.Random(SEED)
    documents = [document(rng) for _ in range(int(2.2 * BATCH * steps) + 20_000)]
    tokenizer = train_tokenizer([given + answer for given, answer in documents[:20_000]])
    tokens, weights = pack(tokenizer, documents)
    print(f"{len(documents)} documents in {len(tokens)} rows, {np.mean(weights > 0):.0%} filled")
    base = pretrain(tokens, weights, steps)
    write_folder(output, tokenizer, base)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the quickstart's tokenizer and model.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    main(arguments.output, arguments.steps)
