"""transformers' models as the oracle: random, small, with no two sides alike. Needs torch; import it inside a test."""

import torch
import transformers

SIZES = {
    "vocab_size": 101, "hidden_size": 46, "intermediate_size": 59, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 211,
}  # fmt: skip


def qwen3(seed: int = 0, dtype=torch.float32, **overrides) -> transformers.Qwen3ForCausalLM:
    """A random Qwen3."""
    return random("qwen3", seed, dtype, **overrides)


def random(family: str, seed: int = 0, dtype=torch.float32, **overrides):
    """A model whose every parameter is random, norms and biases too: one that was not loaded must show."""
    rope = {"rope_type": "default", "rope_theta": overrides.pop("rope_theta", 5000.0)} | overrides.pop("rope", {})
    settings = SIZES | overrides
    if settings["head_dim"] is None:  # as if it were not there: Qwen2's config knows no such key
        del settings["head_dim"]
    config = transformers.AutoConfig.for_model(family, **settings, rope_parameters=rope)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model.to(dtype)


def greedy(model, ids: torch.Tensor, count: int):
    """The `count` most probable tokens after each row, as a numpy array."""
    asked = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[:, ids.shape[1] :].numpy()


def tokens(batch: int = 3, length: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids: torch.Tensor, mask: torch.Tensor | None = None):
    """float32 logits as a numpy array."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits.float().numpy()
