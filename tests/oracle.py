"""transformers' Qwen3 as the oracle: random, small, with no two sides alike. Needs torch; import it inside a test."""

import torch
import transformers

SIZES = {
    "vocab_size": 101, "hidden_size": 46, "intermediate_size": 59, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 211,
}  # fmt: skip


def qwen3(seed: int = 0, dtype=torch.float32, **overrides) -> transformers.Qwen3ForCausalLM:
    """A model whose every parameter is random, norms and biases too: one that was not loaded must show."""
    theta = overrides.pop("rope_theta", 5000.0)
    rope = {"rope_type": "default", "rope_theta": theta}
    config = transformers.Qwen3Config(**(SIZES | overrides), rope_parameters=rope, attn_implementation="eager")
    model = transformers.Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model.to(dtype)


def tokens(batch: int = 3, length: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids: torch.Tensor, mask: torch.Tensor | None = None):
    """float32 logits as a numpy array."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits.float().numpy()
