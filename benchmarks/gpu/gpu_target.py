"""Compiles steps for an NVIDIA GPU on a machine that has none: XLA's compiler needs no device.

    with gpu_target.named("h100"):
        compiled = step.compile(state, length)       step: a training.compiled_steps.CompiledStep

`compiled` is a GPU's program, and so are its memory analysis and its text. Inside the block the package decides as on that GPU:
`jax.default_backend()` returns "gpu", the package asks cuDNN for its plan of attention, and it calls the CUDA ops if they are
built. All other computation stays on the CPU. A compiled step cannot run, and the compiler times no kernels: where a product has
several kernels, it takes its first choice. This needs jax-cuda13-plugin and nvidia-cuda-nvcc, nvidia-cudnn-cu13 for cuDNN's
attention (jax[cuda13] installs all three), and JAX_PLATFORMS=cpu, so that JAX looks for no device.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import NamedTuple
from unittest import mock

import jax

from bidora_jax.errors import InputError
from bidora_jax.machine import compile_cache
from bidora_jax.planning import attention_backend, footprint
from bidora_jax.training import compiled_steps


class Gpu(NamedTuple):
    """What the compiler wants to know of a card, and its rates by the maker's data sheet."""

    title: str
    capability: str
    processors: int
    memory: float
    bandwidth: float
    """Bytes a second."""
    product_rate: float
    """Floating-point operations a second in dense 16-bit products."""
    cache: float
    """Of the second level, bytes."""
    shared: int
    """Bytes of shared memory a processor; a block may have 1,024 less."""
    lanes: int
    threads: int
    """Of a processor at most."""
    clock: float
    """GHz"""


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 85.0e9, 3.35e12, 989e12, 50e6, 233_472, 128, 2048, 1.98),
    "h200": Gpu("NVIDIA H200", "9.0", 132, 150.7e9, 4.8e12, 989e12, 60e6, 233_472, 128, 2048, 1.98),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", "8.0", 108, 85.0e9, 2.04e12, 312e12, 40e6, 167_936, 64, 2048, 1.41),
    "t4": Gpu("Tesla T4", "7.5", 40, 15.6e9, 0.32e12, 65e12, 4e6, 65_536, 64, 1024, 1.59),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", "8.9", 128, 25.3e9, 1.01e12, 165e12, 72e6, 102_400, 128, 1536, 2.52),
}
CUDNN = "nvidia-cudnn-cu13"


@contextmanager
def named(name: str) -> Iterator[Gpu]:
    """Compiles for a GPU of GPUS whatever is compiled inside. InputError where JAX's CUDA compiler is not installed."""
    gpu = GPUS[name]
    folder, (device,) = compile_cache.default_folder(), devices(gpu)

    def there(compiling: Callable) -> Callable:
        @wraps(compiling)
        def on_it(*args, **kwargs):
            with jax.default_device(device):
                return compiling(*args, **kwargs)

        return on_it

    with ExitStack() as stack:
        patched = {
            "bidora_jax.training.compiled_steps.CompiledStep.compile": there(compiled_steps.CompiledStep.compile),
            "bidora_jax.planning.footprint.loss_bytes": there(footprint.loss_bytes),
            # cuDNN is asked whether it has a kernel; how far off it is can't be known here.
            "bidora_jax.planning.attention_backend.refusals": there(attention_backend.refusals),
            "bidora_jax.planning.attention_backend.difference": lambda *_: 0.0,
            "jax.devices": lambda *_: [device],
            "jax.default_backend": lambda: "gpu",
            # Counts of one card are not another's.
            "bidora_jax.machine.compile_cache.default_folder": lambda: folder.with_name(f"{folder.name}-{name}"),
            # JAX asks the first device for these two.
            "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version": cudnn_version,
            "jax._src.cudnn.fused_attention_stablehlo.check_compute_capability": lambda least: (
                float(gpu.capability) >= float(least)
            ),
        }
        for target, value in patched.items():
            stack.enter_context(mock.patch(target, value))
        yield gpu


def devices(gpu: Gpu, count: int = 1) -> list[jax.Device]:
    """The devices of a compiler without any, all of one machine. InputError where JAX's CUDA compiler is not installed."""
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc("", "cuda", topology=f"1x1x{count}", target_config=_description(gpu))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{gpu.title}: JAX's compiler for CUDA was not found ({str(error).splitlines()[0]}); pip install 'jax[cuda13]' and set "
            "JAX_PLATFORMS=cpu"
        ) from error
    return described.devices


def _description(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto in text."""
    major, minor = gpu.capability.split(".")
    try:
        cudnn = cudnn_version()
    except RuntimeError:  # then nothing asks for it
        cudnn = 90_000
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {gpu.threads}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared - 1024} shared_memory_per_core: {gpu.shared}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          core_count: {gpu.processors} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock}
          memory_bandwidth: {gpu.bandwidth:.0f} l2_cache_size: {gpu.cache:.0f} device_memory_size: {gpu.memory:.0f}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: {cudnn // 10_000} minor: {cudnn // 100 % 100} patch: {cudnn % 100} }}
        runtime_version {{ major: 13 minor: 0 patch: 0 }}
        device_description_str: "{gpu.title}"
    """


def cudnn_version() -> int:
    """As cuDNN counts: 9.28.1 is 92801. RuntimeError, as JAX's own, where it is not installed."""
    try:
        parts = importlib.metadata.version(CUDNN).split(".")
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(f"{CUDNN} is not installed") from error
    major, minor, patch = map(int, parts[:3])
    return 10_000 * major + 100 * minor + patch
