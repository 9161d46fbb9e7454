"""Dequantisation of one layer of a stack, as calls of the CUDA library.

    NF4      W = round(code[nibble] · absmax)                  blocks of 64, element 0 of a byte in its HIGH nibble
    nested   absmax = dynamic[absmax_codes] · nested_absmax + offset     one nested_absmax for 256 blocks
    int8     W = codes

Layout and code books are bitsandbytes'; arithmetic is float32, each product and sum rounded by itself, and W is rounded
once to its dtype, so that the result has the bits of the XLA form.

The whole stack goes in with the number of the layer, which may be traced: inside a scan over the layers nothing is sliced
or copied. A number outside [0, L) is clamped. A call has no derivative; the weights it makes are frozen. It runs where its
targets are registered: ask `available` first. Shapes and dtypes are checked by the target, when it runs.
"""

import ctypes
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int8, UInt8

from bidora_jax.kernels.cuda import build
from bidora_jax.kernels.varying import as_varying

TARGETS = ("bidora_nf4", "bidora_nf4_nested", "bidora_int8")
OLDEST = 7.5
"""The lowest compute capability that build.py compiles for."""


def nf4(
    codes: UInt8[Array, "L bytes"], absmax: Float32[Array, "L blocks"], layer: Int[Array, ""],
    *, shape: tuple[int, int], dtype,
) -> Float[Array, "O I"]:  # fmt: skip
    """One layer of NF4 weights of `shape` (O, I) in `dtype`: bfloat16, float16 or float32."""
    return _call("bidora_nf4", shape, dtype)(codes, absmax, layer.astype(jnp.int32))


def nf4_nested(
    codes: UInt8[Array, "L bytes"], absmax_codes: UInt8[Array, "L blocks"], nested_absmax: Float32[Array, "L groups"],
    offset: Float32[Array, " L"], layer: Int[Array, ""], *, shape: tuple[int, int], dtype,
) -> Float[Array, "O I"]:  # fmt: skip
    """`nf4` whose absmax is itself quantised ("double quantisation")."""
    return _call("bidora_nf4_nested", shape, dtype)(codes, absmax_codes, nested_absmax, offset, layer.astype(jnp.int32))


def int8(codes: Int8[Array, "L O I"], layer: Int[Array, ""], *, dtype) -> Float[Array, "O I"]:
    """One layer of int8 weights, cast; exact in every dtype. Their row scale belongs on the product."""
    return _call("bidora_int8", codes.shape[1:], dtype)(codes, layer.astype(jnp.int32))


def _call(target: str, shape: tuple[int, ...], dtype):
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, dtype), vmap_method="sequential")
    # JAX takes its result for one that is the same on every device of a mesh.
    return lambda codes, *others: as_varying(call(codes, *others), codes)


def available() -> bool:
    """Whether the library is built; the first call registers it with JAX for CUDA devices."""
    return _load()[0]


def status() -> str:
    """What `available` found, in one line."""
    return _load()[1]


def described() -> str:
    """What dequantises on the devices at hand, in one line."""
    on_gpu = any(device.platform == "gpu" for device in jax.local_devices())
    return f"CUDA ops {status()}" if on_gpu else "XLA: there is no CUDA device"


@functools.cache
def _load() -> tuple[bool, str]:
    path = build.library_path()
    remedy = f"the XLA form is used; build with {build.COMMAND}"
    if not os.path.isfile(path):  # False, too, for a home that this user may not look into
        stale = any(path.parent.glob("dequantise-*.so"))
        reason = (
            f"{path.parent} holds only a library of other sources or versions" if stale else "no library in the cache"
        )
        return False, f"not built ({reason}): {remedy}"
    old = [device for device in jax.local_devices() if _capability(device) < OLDEST]
    if old:
        return (
            False,
            f"built, but not for {old[0].device_kind} (compute capability below {OLDEST}): the XLA form is used",
        )
    try:
        _register(path, "CUDA")
    except (OSError, AttributeError) as error:  # not a library of this machine, or not whole
        return False, f"built but unreadable ({error}): the XLA form is used; remove {path} and run {build.COMMAND}"
    return True, f"built for {build.BUILT_FOR}: {path}"


def _capability(device) -> float:
    """CUDA's number for what a device can run; infinite for anything but a GPU."""
    return float(device.compute_capability) if device.platform == "gpu" else float("inf")


def register_twin(path: Path) -> None:
    """Registers the CPU twin under the same names for the CPU; for tests."""
    _register(path, "cpu")


def _register(path: Path, platform: str) -> None:
    library = ctypes.CDLL(str(path))
    handlers = [(name, jax.ffi.pycapsule(getattr(library, name))) for name in TARGETS]  # all there before any is used
    for name, handler in handlers:
        jax.ffi.register_ffi_target(name, handler, platform=platform)
