"""train --auto: settings that fit the device, chosen by compiling the step from shapes and reading the compiler's count.

The plan is made before any weight is read (planning/plans.py). The effective batch, batch_size x accumulation, stays the
same, and so does every setting of the command line.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.config import Config
from bidora_jax.errors import InputError
from bidora_jax.machine.memory import Memory
from bidora_jax.planning import attention_backend, plans, remat_choice
from bidora_jax.planning.footprint import Footprint, gigabytes
from bidora_jax.planning.plans import Plan
from bidora_jax.runs import mesh

if TYPE_CHECKING:
    import numpy as np


def fit(config: Config, given: frozenset[str], memory: Memory) -> Config:
    """The configuration with the changes that make it fit, which are printed. Raises InputError where nothing fits."""
    import jax

    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.runs import labelling

    folder = hf_config.resolve_folder(config.model.path)
    if labelling.is_asked(config, hf_config.read_config(folder)):
        raise InputError(
            "--auto counts the step of a language model, and this run labels texts: leave it out, and lower data.batch_size "
            "(with data.accumulation) or data.max_length by hand where memory is short; --dry-run measures the step"
        )
    decoder_config = hf_config.read_decoder(folder)
    fixed = given & set(plans.MAY_CHANGE)
    if hf.is_quantised(folder):  # the files decide
        fixed |= {"model.quantization"}
    dtype = dtype_of(config, folder)
    lengths = (config.data.max_length,)
    model, _ = attention_backend.settle(config.model, decoder_config, config.data, dtype, lengths)
    if mesh.devices(config) > 1:
        mesh.check_devices(config)
    devices = [] if mesh.devices(config) == 1 and mesh.of_one_device(config) else mesh.devices_found()
    if len(devices) > 1:  # cuDNN's attention has not been tried on several
        model = replace(model, attention="chunked")
    start = replace(plan_of(config), model=model)
    found, parts = plans.search(decoder_config, start, dtype, memory, frozenset(fixed), devices)
    if not remat_choice.fits(parts, memory):
        raise InputError(_refusal(found, parts, memory, fixed))
    print("\n".join(described(start, found, parts, memory)))
    if jax.default_backend() == "cpu":
        print(feasible(decoder_config, found, dtype))
    return replace(
        config,
        model=replace(found.model, attention=config.model.attention),  # chosen anew at the lengths of the data
        data=found.data,
        mesh=found.mesh,
        search=replace(config.search, hypergradient=found.search.hypergradient),
    )


def dtype_of(config: Config, folder: Path) -> "np.dtype":
    """The dtype that the base will have."""
    import jax.numpy as jnp

    from bidora_jax.models.formats import hf

    return hf.source_dtype(folder) if config.model.dtype == "auto" else jnp.dtype(config.model.dtype)


def plan_of(config: Config) -> Plan:
    return Plan(config.model, config.adapter, config.data, config.inner, config.outer, config.search, config.mesh)


def described(start: Plan, found: Plan, parts: Footprint, memory: Memory) -> list[str]:
    """Lines that say what was changed and why."""
    import jax

    old, new = plans.as_values(start), plans.as_values(found)
    why = {
        "model.quantization": f"the dense base leaves too little room; it takes {gigabytes(parts.base)} now",
        "data.batch_size": "the fastest that fits, with this remat",
        "data.accumulation": f"the effective batch stays {old['data.batch_size'] * old['data.accumulation']}",
        "data.max_length": "not even a batch of 1 on nf4 fits at the full length; longer records are cut or split",
        "model.remat": "the fastest that fits",
        "search.hypergradient": "the faster of the exact forms that fits",
        "mesh.replica": f"{found.devices} devices are here, and each takes its share of the records of a step",
        "mesh.shard": "no whole base fits one device beside a step, and fewer parts of it do not either",
    }
    if start.adapter.method != "bidora":
        old.pop("search.hypergradient")
    changed = [f"auto: {name} {old[name]} → {new[name]}: {why[name]}" for name in old if old[name] != new[name]]
    counted = f"by the compiler's count for a {jax.default_backend()}"
    if found.devices > 1:
        counted += f", on each of {found.devices} devices"
    return [
        *(changed or ["auto: nothing had to be changed"]),
        f"auto: {gigabytes(remat_choice.needed(parts))} of {remat_choice.allowance(remat_choice.FITS, memory)}, {counted}",
    ]


def feasible(config, plan: Plan, dtype) -> str:
    """How long a step takes on this CPU at least: its products, at a rate that is measured for a moment."""
    rate, work = plans.dot_rate(dtype), plans.arithmetic(config, plan)
    seconds = work / rate
    tokens = plan.data.batch_size * plan.data.accumulation * plan.data.max_length
    hours = 1000 * seconds / 3600
    verdict = (
        "feasible here"
        if hours < 12
        else "feasible for a trial; a real run wants a GPU"
        if hours < 240
        else "not feasible here"
    )
    return (
        f"auto: without a GPU a step of {tokens:,} tokens takes {seconds:.1f} s or more ({work / 1e12:.2f} TFLOP of products at "
        f"{rate / 1e9:.0f} GFLOP/s of {dtype}, measured), 1,000 steps {hours:.1f} h: {verdict}"
    )


def _refusal(plan: Plan, parts: Footprint, memory: Memory, fixed: frozenset[str]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in plans.as_values(plan).items())
    kept = f"; --{', --'.join(sorted(fixed))} was kept as the command line sets it" if fixed else ""
    return (
        f"--auto found nothing that fits in {remat_choice.FITS:.0%} of {gigabytes(memory.bytes)} ({memory.source}): the leanest "
        f"plan takes {gigabytes(remat_choice.needed(parts))}, {gigabytes(parts.base)} of it the base ({values}){kept}; take a "
        "smaller model or a device with more memory"
    )
