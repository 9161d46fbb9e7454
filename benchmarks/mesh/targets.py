"""The devices that programs.py compiles for. None of them is here: XLA's compilers need no device.

GPUs take `pip install 'jax[cuda13]'`, TPUs `pip install libtpu==0.0.42.1`; both take JAX_PLATFORMS=cpu.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from bidora_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))  # gpu_target.py
import gpu_target


class Target(NamedTuple):
    """Several devices of one machine, and their rates by the maker's data sheets."""

    title: str
    platform: str
    topology: str
    """What the compiler calls them; of a GPU its name in gpu_target.py."""
    count: int
    memory: float
    """Bytes of one device."""
    product_rate: float
    """Floating-point operations a second of one device in dense 16-bit products."""
    wire: float
    """Bytes a second that one device takes in from the others of the machine, in both directions of a ring."""


# TPUs: 45 (v5e) and 90 GB/s (v5p) one way on each link, two links on the ring (scaling-book). H100: NVLink, one way.
TARGETS = {
    "h100": Target("8 x NVIDIA H100 80GB", "gpu", "h100", 8, 85.0e9, 989e12, 450e9),
    "v5e": Target("TPU v5e-8", "tpu", "v5e:2x4", 8, 16.9e9, 197e12, 90e9),
    "v5p": Target("8 x TPU v5p", "tpu", "v5p:2x2x2", 8, 102.0e9, 459e12, 180e9),
    "v5e-1": Target("TPU v5e-1, as Colab lends", "tpu", "v5e:1x1", 1, 16.9e9, 197e12, 90e9),
    "t4": Target("2 x Tesla T4, as Kaggle lends", "gpu", "t4", 2, 15.6e9, 65e12, 16e9),
}


def devices(target: Target) -> list[jax.Device]:
    """The devices of the compiler. InputError where it is not installed."""
    if target.platform == "gpu":
        return gpu_target.devices(gpu_target.GPUS[target.topology], target.count)
    from jax.experimental import topologies

    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    chips = {} if target.count > 1 else {"chips_per_host_bounds": (1, 1, 1)}
    try:
        return list(topologies.get_topology_desc(target.topology, "tpu", **chips).devices)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{target.title}: JAX's compiler for TPUs was not found ({str(error).splitlines()[0]}); pip install "
            "libtpu==0.0.42.1 and set JAX_PLATFORMS=cpu"
        ) from error
