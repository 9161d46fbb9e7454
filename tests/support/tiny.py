"""Models, tokenizers and files small enough to make in a test, with shapes that no transpose can hide in."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dense_shapes

CONFIG = DecoderConfig(
    vocab_size=97, hidden_size=26, intermediate_size=38, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=10,
    rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True, qk_norm=True, qkv_bias=False, o_bias=False,
    max_position_embeddings=256,
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789 .,;:()[]{}=+-*/_\"'#\n"


def random_base(config: DecoderConfig = CONFIG, dtype=jnp.float32, seed: int = 0, spread: float = 0.3):
    """Random weights around 0, norm weights around 1."""
    random = np.random.default_rng(seed)

    def leaf(path, shape):
        centre = 1.0 if "norm" in path[-2].key else 0.0
        return jnp.asarray(centre + spread * random.normal(size=shape.shape), dtype)

    return jax.tree_util.tree_map_with_path(leaf, dense_shapes(config, dtype))


def noisy(adapter, direction, magnitude, *, seed: int = 1):
    """The two trees with noise on all that is trained, and none on what only fills the stacks up."""
    random = np.random.default_rng(seed)

    def leaf(path, stack):
        top, *names, kind = (key.key for key in path)
        if top != "layers":
            return stack + jnp.asarray(0.1 * random.normal(size=stack.shape), stack.dtype)
        ranks = np.array(next(site.ranks for site in adapter.sites if site.path == ".".join(names)))
        used = np.arange(max(ranks)) < ranks[:, None]
        used = {"A": used[..., None], "B": used[:, None], "m": ranks[:, None] > 0}[kind]
        return (stack + used * 0.1 * random.normal(size=stack.shape)).astype(jnp.float32)

    return tuple(jax.tree_util.tree_map_with_path(leaf, tree) for tree in (direction, magnitude))


def write_tokenizer(folder: Path) -> None:
    """One token a character, and ChatML's three special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = dict.fromkeys(piece for c in CHARACTERS for piece, _ in byte.pre_tokenize_str(c))
    vocabulary = {piece: i for i, piece in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "pad_token": SPECIAL[0],
                "chat_template": TEMPLATE, "model_max_length": 256, "clean_up_tokenization_spaces": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def hf_config(config: DecoderConfig) -> dict:
    """config.json of a Qwen3 with these shapes."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "dtype": "float32",
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "rms_norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta,
        "attention_bias": config.qkv_bias, "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings, "use_sliding_window": False,
    }  # fmt: skip


def write_model_folder(folder: Path, config: DecoderConfig = CONFIG, seed: int = 0) -> Path:
    """A Hugging Face folder with random float32 weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(random_base(config, seed=seed)):
        names = [key.key for key in path]
        if names[0] == "layers":
            tensors |= {f"model.layers.{i}.{'.'.join(names[1:])}": np.asarray(leaf[i]) for i in range(leaf.shape[0])}
        else:
            tensors[("" if names[0] == "lm_head" else "model.") + ".".join(names)] = np.asarray(leaf)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_records(path: Path, count: int, seed: int) -> Path:
    """Records of differing length that ask for a number to be repeated."""
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(count):
            number, times = int(random.integers(100)), int(random.integers(1, 6))
            record = {"instruction": f"repeat {number} x{times}", "output": " ".join([f"v{number};"] * times)}
            file.write(json.dumps(record) + "\n")
    return path
