"""Shapes of published models: the numbers of their config.json, and what their family fixes besides (families.py)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bidora_jax.models.architectures.decoder import DecoderConfig

# name: (family, vocabulary, hidden, intermediate, layers, heads, key/value heads, head size, tied), of its config.json
MODELS = {
    "Qwen/Qwen3-0.6B": ("qwen3", 151_936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 151_936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-4B": ("qwen3", 151_936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen/Qwen3-8B": ("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-14B": ("qwen3", 151_936, 5120, 17_408, 40, 40, 8, 128, False),
    "Qwen/Qwen3-32B": ("qwen3", 151_936, 5120, 25_600, 64, 64, 8, 128, False),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151_936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128, False),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 49_152, 576, 1536, 30, 9, 3, 64, True),
    "meta-llama/Llama-3.2-1B": ("llama", 128_256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.1-8B": ("llama", 128_256, 4096, 14_336, 32, 32, 8, 128, False),
    "mistralai/Mistral-7B-v0.3": ("mistral", 32_768, 4096, 14_336, 32, 32, 8, 128, False),
}


def names(family: str) -> list[str]:
    """The models of a family, from small to large; of "all", all models."""
    return [name for name, (own, *_) in MODELS.items() if family in (own, "all")]


def shape(name: str) -> "DecoderConfig":
    """The model's shape. Rotation, the norms' epsilon and the context take no memory: they are the same for all here."""
    from bidora_jax.models.architectures.decoder import DecoderConfig  # these two load NumPy, and --help needs neither
    from bidora_jax.models.architectures.families import DECODERS

    family, vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, tied = MODELS[name]
    return DecoderConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=tied,
        qk_norm=DECODERS[family].qk_norm, qkv_bias=bool(DECODERS[family].qkv_bias), o_bias=bool(DECODERS[family].o_bias),
        max_position_embeddings=32_768,
    )  # fmt: skip
