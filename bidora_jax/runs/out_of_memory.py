"""Out of memory while training: one message with the three settings that lower the peak most.

Each alternative is compiled from shapes, and its peak by the compiler's count is compared with that of the run as it is. Where
the system kills the process instead of refusing memory (Linux, as it is usually set), no message is possible.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from bidora_jax.config import Config
from bidora_jax.errors import InputError, RunError, listing

if TYPE_CHECKING:
    from bidora_jax.planning.plans import Plan


MOST = 3


@contextmanager
def explained(config: Config, length: int | None = None) -> Iterator[None]:
    """If the block runs out of memory, raises a RunError that says what would help. `length` is the largest padded length of
    the run; None stands for data.max_length."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    else:
        return
    # Outside of the handler the traceback is gone, and with it the arrays that it held: compiling needs memory too.
    raise RunError(f"out of memory ({reason}); {advice(config, length)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host refused memory."""
    import jax

    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def advice(config: Config, length: int | None = None) -> str:
    """The settings that lower the peak of a step most, with the peaks."""
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.planning import plans, remat_choice
    from bidora_jax.planning.footprint import gigabytes
    from bidora_jax.runs import auto, mesh

    plan = auto.plan_of(config)
    plan = replace(plan, data=replace(plan.data, max_length=length or plan.data.max_length))
    try:
        folder = hf_config.resolve_folder(config.model.path)
        decoder_config, quantised = hf_config.read_decoder(folder), hf.is_quantised(folder)
        dtype = auto.dtype_of(config, folder)
    except InputError:
        return "choose a smaller model, or --model.quantization nf4"
    devices = mesh.devices_found()

    def peak_of(plan: "Plan") -> int:
        return remat_choice.needed(plans.counted(decoder_config, plan, dtype, devices))

    as_it_is = peak_of(_leanest(plan))
    found = [(peak_of(other), flag) for flag, other in _alternatives(_leanest(plan), quantised)]
    helpful = [(peak, flag) for peak, flag in sorted(found) if peak < as_it_is][:MOST]
    if not helpful:
        return f"the run takes {gigabytes(as_it_is)} at its peak, and no setting lowers that: choose a smaller model"
    lines = [f"{flag}: {gigabytes(as_it_is)} → {gigabytes(peak)}" for peak, flag in helpful]
    return f"by the compiler's count, what lowers the peak most (--auto does it by itself):\n{listing(lines)}"


def _leanest(plan: "Plan") -> "Plan":
    """The plan with the form that takes least in the place of each `auto`."""
    remat = "layer" if plan.model.remat == "auto" else plan.model.remat
    form = "exact" if plan.search.hypergradient == "auto" else plan.search.hypergradient
    return replace(plan, model=replace(plan.model, remat=remat), search=replace(plan.search, hypergradient=form))


def _alternatives(plan: "Plan", quantised: bool) -> "Iterator[tuple[str, Plan]]":
    """(what to type, the plan with it) for each setting that may lower the peak, one setting at a time."""
    model, data = plan.model, plan.data
    if plan.mesh.replica > 1:
        flag = f"--mesh.replica 1 --mesh.shard {plan.mesh.row_parts} (the same gradients)"
        yield flag, replace(plan, mesh=replace(plan.mesh, replica=1, shard=plan.mesh.row_parts))
    least = plan.mesh.row_parts
    if data.batch_size > least:
        times = data.batch_size * data.accumulation // least
        flag = f"--data.batch-size {least} --data.accumulation {times} (the same gradients)"
        yield flag, replace(plan, data=replace(data, batch_size=least, accumulation=times))
    if model.remat != "layer":
        yield "--model.remat layer (the same gradients)", replace(plan, model=replace(model, remat="layer"))
    if plan.adapter.method == "bidora" and plan.search.hypergradient == "reverse":
        flag = "--search.hypergradient exact (the same quantity)"
        yield flag, replace(plan, search=replace(plan.search, hypergradient="exact"))
    if model.quantization != "nf4" and not quantised:
        yield "--model.quantization nf4", replace(plan, model=replace(model, quantization="nf4"))
    if data.max_length >= 64:
        half = data.max_length // 2
        flag = f"--data.max-length {half} (longer records are cut or split)"
        yield flag, replace(plan, data=replace(data, max_length=half))
    if model.loss_chunk > 64:
        yield "--model.loss-chunk 64 (the same loss)", replace(plan, model=replace(model, loss_chunk=64))
