"""The largest published model that can be trained on this machine, and the command that trains it."""

from bidora_jax.machine.facts import Section

PATIENCE = 24 * 3600.0
"""Seconds that 1,000 steps may take on a CPU for a model to be recommended there."""


def recommended() -> Section:
    """The largest Qwen3 whose BiDoRA step fits this device, and the command line that trains it.

    The compiler counts the memory. On a CPU the model must also be fast enough: the arithmetic of a step is divided by a rate
    that is measured for a moment.
    """
    import jax

    from bidora_jax.machine.memory import device_memory
    from bidora_jax.models.architectures import published
    from bidora_jax.models.settings import QUANTIZATIONS
    from bidora_jax.planning import plans, published_steps, remat_choice

    memory = device_memory()
    rate = plans.dot_rate("bfloat16") if jax.default_backend() == "cpu" else None
    for name in reversed(published.names("qwen3")):
        config = published.shape(name)
        for form in QUANTIZATIONS:
            plan = published_steps.listed_plan("bidora", form, 1, 1024)
            seconds = plans.arithmetic(config, plan) / rate if rate else 0.0
            if (
                1000 * seconds > PATIENCE
                or plans.base_bytes(config, plan, "bfloat16") > remat_choice.FITS * memory.bytes
            ):
                continue
            peak = published_steps.step_bytes(config, plan)
            if peak > remat_choice.FITS * memory.bytes:
                continue
            quantised = "" if form == "none" else f" --model.quantization {form}"
            command = (
                f"python -m bidora_jax.train --model.path {name} --model.dtype bfloat16{quantised} --data.batch-size 1 "
                "--data.accumulation 4 --data.train-file data.jsonl --data.val-fraction 0.2 --auto"
            )
            return {
                "model": name, "quantization": form, "memory of a step": peak,
                "seconds a record of 1,024 tokens": round(seconds, 1) if rate else None, "command": command,
            }  # fmt: skip
    return {"model": "none of the Qwen3 models fits; python -m bidora_jax.models --family all lists smaller ones"}
