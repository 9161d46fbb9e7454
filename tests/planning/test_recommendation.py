"""planning/recommendation.py: the largest model that fits and is fast enough."""

from bidora_jax.machine import memory
from bidora_jax.models.architectures import published
from bidora_jax.planning import plans, published_steps, recommendation


def test_the_largest_model_that_fits_and_is_fast_enough_is_recommended(monkeypatch):
    """8B's base alone is over the limit in every form; 4B's step fits in nf4 only, and takes too long on a slow CPU."""
    peaks = {("Qwen/Qwen3-4B", "nf4"): 3.9e9, ("Qwen/Qwen3-4B", "int8"): 5e9, ("Qwen/Qwen3-1.7B", "none"): 4e9}
    shapes = {published.shape(name): name for name in published.MODELS}
    counted = []

    def step_bytes(config, plan):
        counted.append((shapes[config], plan.model.quantization))
        return peaks[counted[-1]]

    monkeypatch.setattr(published_steps, "step_bytes", step_bytes)
    monkeypatch.setattr(memory, "device_memory", lambda: memory.Memory(5 * 10**9, ""))
    monkeypatch.setattr(plans, "dot_rate", lambda dtype: 1e13)
    found = recommendation.recommended()
    assert (found["model"], found["quantization"], found["memory of a step"]) == ("Qwen/Qwen3-4B", "nf4", 3.9e9)
    assert "--model.path Qwen/Qwen3-4B --model.dtype bfloat16 --model.quantization nf4" in str(found["command"])
    assert all("8B" not in name and "32B" not in name for name, _ in counted)
    monkeypatch.setattr(plans, "dot_rate", lambda dtype: 5e11)
    assert recommendation.recommended()["model"] == "Qwen/Qwen3-1.7B"
