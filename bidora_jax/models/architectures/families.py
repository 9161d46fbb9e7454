"""The table of the families that are read, by the model_type of their config.json.

An entry reads config.json and makes the `Architecture` of it, which says all that the package knows of the model: one more
family is one more entry.
"""

from bidora_jax.models.architectures.decoder_family import DecoderFamily

FAMILIES = {
    "llama": DecoderFamily(False, None, None, None, "never", num_key_value_heads=None, max_position_embeddings=2048),
    "mistral": DecoderFamily(
        False, False, False, False, "always", num_key_value_heads=8, max_position_embeddings=131072
    ),
    "qwen2": DecoderFamily(
        False, True, False, False, "on request", num_key_value_heads=32, max_position_embeddings=32768
    ),
    "qwen3": DecoderFamily(
        True, None, None, False, "on request", num_key_value_heads=32, max_position_embeddings=32768, head_dim=128
    ),
}
