"""kernels/cuda: bit equality with NumPy, on the CPU twin of the targets and on the kernels' own text run on the CPU."""

import subprocess

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import once

from bidora_jax.kernels import quantized
from bidora_jax.kernels.cuda import build, ops
from bidora_jax.kernels.dynamic_8bit import dynamic_map

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32]
LAYERS = 3
# 7·13 = 91 elements: an odd number, blocks that cross rows, a last block of 27. 2·62 = 124 elements are 62 bytes: the second
# layer starts between two words of 4 bytes. 31·1216 = 64·589 elements: three nested blocks, the last of 77.
SHAPES = [(7, 13), (2, 62), (31, 1216)]


def nf4_case(shape, seed: int = 0):
    """Random stacks of codes, absmax and the three parts of a nested absmax."""
    random = np.random.default_rng(seed)
    elements = shape[0] * shape[1]
    blocks = -(-elements // 64)
    codes = random.integers(0, 256, (LAYERS, -(-elements // 2)), np.uint8)
    absmax = random.lognormal(-4, 2, (LAYERS, blocks)).astype(np.float32)
    nested = (random.integers(0, 256, (LAYERS, blocks), np.uint8),
              random.lognormal(-4, 2, (LAYERS, -(-blocks // 256))).astype(np.float32),
              random.normal(size=LAYERS).astype(np.float32))  # fmt: skip
    return codes, absmax, nested


def unpacked(codes, absmax, shape, dtype):
    """One layer, as the formula has it: a float32 product, rounded once."""
    elements = shape[0] * shape[1]
    nibbles = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:elements]
    product = quantized.CODEBOOK[nibbles] * np.repeat(absmax, 64)[:elements]
    assert product.dtype == np.float32
    return product.astype(dtype).reshape(shape)


def unnested(codes, absmax, offset):
    product = dynamic_map(signed=True)[codes] * np.repeat(absmax, 256)[: codes.size]
    return product + offset


def same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.fixture(scope="session")
def twin(shared_folder):
    """The CPU twin, registered with JAX."""
    ops.register_twin(once(shared_folder / "twin", build.build_twin) / "dequantise-twin.so")


# --- oracle: NumPy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_the_formula(twin, shape, dtype):
    codes, absmax, _ = nf4_case(shape)
    for layer in range(LAYERS):
        found = ops.nf4(jnp.asarray(codes), jnp.asarray(absmax), jnp.int32(layer), shape=shape, dtype=dtype)
        same_bits(found, unpacked(codes[layer], absmax[layer], shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nested_absmax_is_rounded_twice(twin, shape, dtype):
    codes, _, nested = nf4_case(shape)
    for layer in range(LAYERS):
        found = ops.nf4_nested(*map(jnp.asarray, (codes, *nested)), jnp.int32(layer), shape=shape, dtype=dtype)
        same_bits(found, unpacked(codes[layer], unnested(*(part[layer] for part in nested)), shape, dtype))


def test_the_case_tells_two_roundings_from_one():
    """A fused multiply-add, which rounds the float64 sum once, would change the nested scales above."""
    code, absmax, offset = (part[0] for part in nf4_case(SHAPES[-1])[2])
    exact = dynamic_map(signed=True)[code].astype(np.float64) * np.repeat(absmax, 256)[: code.size] + offset
    assert np.count_nonzero(exact.astype(np.float32) != unnested(code, absmax, offset)) > 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_is_its_two_codes(twin, dtype):
    codes = np.arange(256, dtype=np.uint8)[None]
    # Times code 15, which is 1: ties of bfloat16 and of float16, and float16's infinities and subnormals.
    absmax = np.array([[1 + 2**-8, 1 + 2**-11, 7e4, 3e-7, 0.0, -1.7, 1 + 3 * 2**-8, 1 + 3 * 2**-11]], np.float32)
    found = ops.nf4(jnp.asarray(codes), jnp.asarray(absmax), jnp.int32(0), shape=(2, 256), dtype=dtype)
    with np.errstate(over="ignore"):
        same_bits(found, unpacked(codes[0], absmax[0], (2, 256), dtype))


def test_every_code_of_a_nested_absmax_is_the_dynamic_map(twin):
    """Code 15 everywhere, so that the result is the absmax; one nested block, an offset of nothing."""
    codes = np.full((1, 256 * 32), 0xFF, np.uint8)
    parts = (np.arange(256, dtype=np.uint8)[None], np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    found = ops.nf4_nested(*map(jnp.asarray, (codes, *parts)), jnp.int32(0), shape=(256, 64), dtype=jnp.float32)
    same_bits(found[:, 17], dynamic_map(signed=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_an_exact_cast(twin, dtype):
    codes = np.stack([np.roll(np.arange(-128, 131).astype(np.int8), shift).reshape(7, 37) for shift in range(LAYERS)])
    for layer in range(LAYERS):
        same_bits(ops.int8(jnp.asarray(codes), jnp.int32(layer), dtype=dtype), codes[layer].astype(dtype))


# --- law: the index, transformations, refusals


@pytest.mark.parametrize(("index", "layer"), [(-1, 0), (-(2**31), 0), (LAYERS, LAYERS - 1), (2**31 - 1, LAYERS - 1)])
def test_an_index_outside_the_stack_is_clamped(twin, index, layer):
    shape = SHAPES[0]
    codes, absmax, nested = jax.tree.map(jnp.asarray, nf4_case(shape))
    weights = jnp.asarray(np.random.default_rng(1).integers(-128, 128, (LAYERS, *shape), np.int8))
    for call in (lambda i: ops.nf4(codes, absmax, i, shape=shape, dtype=jnp.float32),
                 lambda i: ops.nf4_nested(codes, *nested, i, shape=shape, dtype=jnp.float32),
                 lambda i: ops.int8(weights, i, dtype=jnp.float32)):  # fmt: skip
        same_bits(call(jnp.int32(index)), call(jnp.int32(layer)))


def stacked_loss(weight_of, x, indices):
    """A chain of frozen layers, scanned and rematerialised as the decoder does it."""

    @jax.checkpoint
    def layer(x, index):
        return jnp.tanh(x @ weight_of(index).T @ weight_of(index)), None

    return jnp.sum(jnp.square(jax.lax.scan(layer, x, indices)[0]))


def dense_and_packed(shape=(5, 7)):
    codes, _, _ = nf4_case(shape)
    absmax = np.array([[0.7], [0.9], [0.8]], np.float32)  # so that three layers neither vanish nor saturate
    dense = jnp.stack([unpacked(*layer, shape, np.float32) for layer in zip(codes, absmax, strict=True)])
    codes, absmax = jnp.asarray(codes), jnp.asarray(absmax)
    return dense.__getitem__, lambda index: ops.nf4(codes, absmax, index, shape=shape, dtype=jnp.float32)


def test_gradients_and_curvature_pass_through_a_scan_of_rematerialised_layers(twin):
    dense, packed = dense_and_packed()
    x, v = (jnp.asarray(np.random.default_rng(seed).normal(size=(3, 7)), jnp.float32) for seed in (5, 6))
    indices = jnp.array([2, 0, 1], jnp.int32)

    def both(weight_of):
        gradient = jax.grad(lambda x: stacked_loss(weight_of, x, indices))
        return jax.jit(lambda x: jax.jvp(gradient, (x,), (v,)))(x)

    for found, expected in zip(both(packed), both(dense), strict=True):
        # The weights are the same bits; the compiler may order the sums of the two programs differently.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(expected).max() > 1e-3


def test_scale_factors_have_no_derivative_and_say_so(twin):
    codes, absmax, _ = nf4_case(SHAPES[0])
    with pytest.raises(ValueError, match="bidora_nf4` cannot be differentiated"):
        jax.grad(lambda a: ops.nf4(jnp.asarray(codes), a, jnp.int32(0), shape=SHAPES[0], dtype=jnp.float32).sum())(
            jnp.asarray(absmax)
        )


def test_a_batch_of_indices_is_one_layer_after_another(twin):
    dense, packed = dense_and_packed()
    indices = jnp.array([1, 2, 1, 0], jnp.int32)
    same_bits(jax.vmap(packed)(indices), jnp.stack([dense(i) for i in indices]))


U8, I8, I32, I64, F16, F32, F64 = "uint8", "int8", "int32", "int64", "float16", "float32", "float64"
RIGHT = {
    "bidora_nf4": {"codes": (U8, (3, 46)), "absmax": (F32, (3, 2)), "layer": (I32, ())},
    "bidora_nf4_nested": {"codes": (U8, (3, 46)), "absmax_codes": (U8, (3, 2)), "nested_absmax": (F32, (3, 1)),
                          "offset": (F32, (3,)), "layer": (I32, ())},
    "bidora_int8": {"codes": (I8, (3, 7, 13)), "layer": (I32, ())},
}  # fmt: skip
WRONG = [
    ("bidora_nf4", {"codes": (U8, (3, 45))}, r"codes is uint8 \(3, 45\), not uint8 \(3, 46\)"),
    ("bidora_nf4", {"codes": (I8, (3, 46))}, r"codes is int8 \(3, 46\), not uint8"),
    ("bidora_nf4", {"codes": (U8, ())}, r"codes is \(\), not a stack"),
    ("bidora_nf4", {"absmax": (F32, (3, 1))}, r"absmax is float32 \(3, 1\), not float32 \(3, 2\)"),
    ("bidora_nf4", {"absmax": (F32, (2, 2))}, r"absmax is float32 \(2, 2\), not float32 \(3, 2\)"),
    ("bidora_nf4", {"absmax": (F16, (3, 2))}, "absmax is float16"),
    ("bidora_nf4", {"layer": (I32, (1,))}, r"layer is int32 \(1,\), not int32 \(\)"),
    ("bidora_nf4", {"absmax": (F32, (3, 1)), "layer": (F32, ())}, "absmax is .*; layer is float32"),
    ("bidora_nf4_nested", {"absmax_codes": (F32, (3, 2))}, r"absmax_codes is float32 \(3, 2\), not uint8"),
    ("bidora_nf4_nested", {"nested_absmax": (F32, (3, 2))}, r"nested_absmax is float32 \(3, 2\), not float32 \(3, 1\)"),
    ("bidora_nf4_nested", {"offset": (F32, ())}, r"offset is float32 \(\), not float32 \(3,\)"),
    ("bidora_int8", {"codes": (U8, (3, 7, 13))}, "codes is uint8"),
    ("bidora_int8", {"codes": (I8, (3, 13, 7))}, r"codes is int8 \(3, 13, 7\), not int8 \(3, 7, 13\)"),
    ("bidora_int8", {"layer": (U8, ())}, "layer is uint8"),
]


def raw_call(target, operands, result=("float32", (7, 13))):
    """A target called as no function of ops would call it."""
    arrays = [jnp.zeros(shape, dtype) for dtype, shape in operands.values()]
    dtype, shape = result
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, dtype))(*arrays).block_until_ready()


@pytest.mark.parametrize(("target", "change", "message"), WRONG)
def test_a_wrong_operand_is_named(twin, target, change, message):
    raw_call(target, RIGHT[target])
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{target}: .*{message}"):
        raw_call(target, RIGHT[target] | change)


@pytest.mark.parametrize("target", RIGHT)
def test_a_wrong_result_is_named(twin, target):
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{target}: the result is int32, not bfloat16"):
        raw_call(target, RIGHT[target], ("int32", (7, 13)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"{target}: the result is \(7, 13, 1\), not \(O, I\)"):
        raw_call(target, RIGHT[target], ("float32", (7, 13, 1)))


def test_a_missing_operand_is_refused(twin):
    with pytest.raises(jax.errors.JaxRuntimeError, match="Wrong number of arguments: expected 3 but got 1"):
        raw_call("bidora_nf4", {"codes": RIGHT["bidora_nf4"]["codes"]})


# --- parity: the XLA form, and the kernels' own text


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_xla_form_has_the_same_bits(twin, dtype):
    shape, layer = SHAPES[-1], jnp.int32(1)
    codes, absmax, nested = jax.tree.map(jnp.asarray, nf4_case(shape))
    plain = quantized.NF4(codes, absmax, shape, np.dtype(dtype))
    double = quantized.NF4(codes, quantized.Nested(*nested), shape, np.dtype(dtype))
    same_bits(
        ops.nf4(codes, absmax, layer, shape=shape, dtype=dtype), quantized.opened(quantized.Layer(plain, layer))[0]
    )
    same_bits(
        ops.nf4_nested(codes, *nested, layer, shape=shape, dtype=dtype),
        quantized.opened(quantized.Layer(double, layer))[0],
    )


# CUDA for one thread at a time: just what dequantise.cu uses. A grid is run twice, since a thread of the first run may
# find a table of shared memory (static here) that the threads after it have yet to fill.
SHIM = r"""
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
using std::max;
using std::min;
struct dim3 { unsigned x; explicit dim3(unsigned x = 1) : x(x) {} };
inline dim3 threadIdx, blockIdx, gridDim;
inline void __syncthreads() {}
struct uint2 { uint32_t x, y; } __attribute__((aligned(8)));
struct uint4 { uint32_t x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
template <typename T> T __ldg(const T* p) { return *p; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
using __half = _Float16;
struct __half2 { __half x, y; };
inline __half __float2half_rn(float a) { return static_cast<__half>(a); }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
struct __nv_bfloat16 { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
  uint32_t b;
  std::memcpy(&b, &a, 4);
  return {static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)}; }
enum cudaError_t { cudaSuccess };
enum { cudaDevAttrMultiProcessorCount };
inline int processors = 1;
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { *value = processors; return cudaSuccess; }
template <typename K> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* value, K, int, int) {
  *value = 1;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
struct cudaLaunchConfig_t { dim3 gridDim, blockDim; void* stream; };
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  gridDim = config->gridDim;
  for (int twice = 0; twice < 2; ++twice) {
    for (blockIdx.x = 0; blockIdx.x < config->gridDim.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < config->blockDim.x; ++threadIdx.x) kernel(arguments...);
    }
  }
  return cudaSuccess;
}
"""
# Operands and result lie in memory of just their size, so that the sanitizer sees a byte read or written beside them.
EMULATOR = r"""
#include <cstdio>
#include <string>
#include <vector>
#include "dequantise.cu"

template <typename T> const T* operand(int64_t count) {
  T* data = static_cast<T*>(std::aligned_alloc(16, (count * sizeof(T) + 15) / 16 * 16));
  T* exact = static_cast<T*>(std::realloc(data, std::max<size_t>(1, count * sizeof(T))));
  if (std::fread(exact, sizeof(T), count, stdin) != static_cast<size_t>(count)) std::abort();
  return exact;
}

int main(int, char** argv) {
  const std::string kind = argv[1];
  const int64_t layers = std::atoll(argv[2]), elements = std::atoll(argv[3]), size = std::atoll(argv[6]);
  const int32_t layer = std::atoi(argv[4]);
  processors = std::atoi(argv[7]);
  const int64_t blocks = bidora::ceil_div(elements, 64);
  void* out = std::malloc(std::max<int64_t>(1, elements * size));
  bidora::Stack stack{nullptr, &layer, layers, elements, out, static_cast<bidora::Float>(std::atoi(argv[5]))};
  stack.codes = operand<uint8_t>(layers * (kind == "int8" ? elements : bidora::ceil_div(elements, 2)));
  if (kind == "int8") {
    bidora::int8(stack, nullptr);
  } else if (kind == "nf4") {
    bidora::nf4(stack, bidora::Absmax{operand<float>(layers * blocks)}, nullptr);
  } else {
    const auto* codes = operand<uint8_t>(layers * blocks);
    const auto* nested = operand<float>(layers * bidora::ceil_div(blocks, 256));
    bidora::nf4(stack, bidora::NestedAbsmax{codes, nested, operand<float>(layers)}, nullptr);
  }
  std::fwrite(out, size, elements, stdout);
}
"""


@pytest.fixture(scope="session")
def emulate(shared_folder):
    """Runs dequantise.cu on the CPU: (kind, operands, elements, layer, dtype, processors) -> the result's bytes."""

    def make(folder):
        for name in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
            (folder / name).write_text(SHIM if name == "cuda_runtime.h" else '#include "cuda_runtime.h"\n')
        (folder / "emulator.cc").write_text(EMULATOR)
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-fsanitize=address,undefined",
                 "-fno-sanitize-recover=all", f"-I{folder}", f"-I{build.HERE}"]  # fmt: skip
        subprocess.run(["g++", *flags, str(folder / "emulator.cc"), "-o", str(folder / "emulator")], check=True)

    program = once(shared_folder / "emulator", make) / "emulator"

    def run(kind, operands, elements, layer, dtype, processors):
        argv = [kind, LAYERS, elements, layer, DTYPES.index(dtype), np.dtype(dtype).itemsize, processors]
        done = subprocess.run([program, *map(str, argv)], input=b"".join(part.tobytes() for part in operands),
                              capture_output=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


# 31·1216 elements keep one block of 256 threads, with four reads under way in each, busy for 4.6 rounds in bfloat16 and 9.2
# in float32: one processor goes round, three share unevenly, and of 99 the last at work finds less than it could take.
# 2·3 elements are fewer than a whole 16 bytes.
@pytest.mark.parametrize("processors", [1, 3, 99])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3)])
def test_the_kernels_themselves_write_every_element_and_touch_nothing_else(emulate, shape, dtype, processors):
    elements = shape[0] * shape[1]
    codes, absmax, nested = nf4_case(shape)
    weights = np.random.default_rng(3).integers(-128, 128, (LAYERS, elements), np.int8)
    for layer in (0, 2):
        run = (elements, layer, dtype, processors)
        flat_absmax = unnested(*(part[layer] for part in nested))
        assert emulate("nf4", (codes, absmax), *run) == unpacked(codes[layer], absmax[layer], shape, dtype).tobytes()
        assert emulate("nested", (codes, *nested), *run) == unpacked(codes[layer], flat_absmax, shape, dtype).tobytes()
        assert emulate("int8", (weights,), *run) == weights[layer].astype(dtype).tobytes()


# --- road: lowering for CUDA


def test_a_program_for_cuda_calls_the_target_with_the_whole_stack():
    shape = SHAPES[0]
    codes, absmax, nested = jax.tree.map(jnp.asarray, nf4_case(shape))
    calls = {
        "bidora_nf4": (lambda *p: ops.nf4(*p, shape=shape, dtype=jnp.bfloat16), (codes, absmax),
                       "(tensor<3x46xui8>, tensor<3x2xf32>, tensor<i32>)"),
        "bidora_nf4_nested": (lambda *p: ops.nf4_nested(*p, shape=shape, dtype=jnp.bfloat16), (codes, *nested),
                              "(tensor<3x46xui8>, tensor<3x2xui8>, tensor<3x1xf32>, tensor<3xf32>, tensor<i32>)"),
        "bidora_int8": (lambda *p: ops.int8(*p, dtype=jnp.bfloat16), (jnp.zeros((3, 7, 13), jnp.int8),),
                        "(tensor<3x7x13xi8>, tensor<i32>)"),
    }  # fmt: skip
    for target, (call, operands, kinds) in calls.items():
        program = jax.jit(call).trace(*operands, jnp.int32(1)).lower(lowering_platforms=("cuda",))
        (line,) = hlo.foreign_calls(program)
        assert f"@{target}(" in line and f"{kinds} -> tensor<7x13xbf16>" in line
