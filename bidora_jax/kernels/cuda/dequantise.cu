// The kernels of dequantise.h. The work is copying, and the aim is the bandwidth of a copy:
//
//   - A thread writes 16 bytes at a time, next to its neighbour's, and reads the codes of just those elements, so that a
//     warp's reads and writes are both whole lines. Several reads are under way before the first value is needed.
//   - The 16 values of NF4 lie in 16 banks of shared memory: no lookup conflicts. The threads of one block of 64 read its
//     absmax by one broadcast.
//   - A grid of as many thread blocks as the device holds goes over the layer, so that tables are filled once a block.
//   - A layer that does not start on a word of codes (an odd number of bytes a layer) and the elements after the last
//     whole 16 bytes go one at a time, by the loop at the end.
//
// The result is not streamed past the cache: the matrix product that follows reads it again.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "dequantise.h"
#include "tables.h"

namespace bidora {
namespace {

constexpr int kThreads = 256;
constexpr int kReads = 4;  // reads under way in a thread

template <int bytes> struct WordOf;
template <> struct WordOf<2> { using Type = uint16_t; };
template <> struct WordOf<4> { using Type = uint32_t; };
template <> struct WordOf<8> { using Type = uint2; };
template <int bytes> using Word = typename WordOf<bytes>::Type;

__device__ inline int byte_of(uint16_t word, int i) { return (word >> (8 * i)) & 0xff; }
__device__ inline int byte_of(uint32_t word, int i) { return (word >> (8 * i)) & 0xff; }
__device__ inline int byte_of(uint2 word, int i) { return byte_of(i < 4 ? word.x : word.y, i % 4); }

// Rounding of float32 to the result's type, to nearest even; by pairs, since the device has one instruction for two.
template <typename Out> struct Round;
template <> struct Round<float> {
  using Pair = float2;
  static __device__ float one(float a) { return a; }
  static __device__ Pair two(float a, float b) { return make_float2(a, b); }
};
template <> struct Round<__half> {
  using Pair = __half2;
  static __device__ __half one(float a) { return __float2half_rn(a); }
  static __device__ Pair two(float a, float b) { return __floats2half2_rn(a, b); }
};
template <> struct Round<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static __device__ __nv_bfloat16 one(float a) { return __float2bfloat16_rn(a); }
  static __device__ Pair two(float a, float b) { return __floats2bfloat162_rn(a, b); }
};

// The absmax of a block of the chosen layer.
struct PlainScale {
  const float* values;
  explicit PlainScale(const Absmax& absmax) : values(absmax.values) {}

  __device__ void choose(int64_t layer, int64_t blocks) { values += layer * blocks; }
  __device__ float of(int64_t block) const { return __ldg(values + block); }
};

struct NestedScale {
  const uint8_t* codes;
  const float* nested;
  const float* offsets;
  const float* dynamic = nullptr;
  float offset = 0.0f;
  explicit NestedScale(const NestedAbsmax& absmax)
      : codes(absmax.codes), nested(absmax.nested), offsets(absmax.offset) {}

  __device__ void choose(int64_t layer, int64_t blocks) {
    __shared__ float table[256];
    for (int i = threadIdx.x; i < 256; i += kThreads) table[i] = dynamic8(i);
    dynamic = table;
    codes += layer * blocks;
    nested += layer * ceil_div(blocks, kNestedBlock);
    offset = __ldg(offsets + layer);
  }
  __device__ float of(int64_t block) const {
    const float product = __fmul_rn(dynamic[__ldg(codes + block)], __ldg(nested + block / kNestedBlock));
    return __fadd_rn(product, offset);
  }
};

// Where the values of a layer come from. `read` fetches `count` elements, the group-th such, and `value` decodes one.
template <typename Scale> struct Nf4Source {
  static constexpr int kBits = 4;
  const uint8_t* codes;
  Scale scale;
  const float* values = nullptr;

  template <int count> struct Read {
    Word<count / 2> word;
    float absmax;
  };

  __device__ void choose(int64_t layer, int64_t elements) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = kNf4[threadIdx.x];
    values = table;
    codes += layer * ceil_div(elements, 2);
    scale.choose(layer, ceil_div(elements, kBlock));
  }
  template <int count> __device__ Read<count> read(int64_t group) const {
    return {__ldg(reinterpret_cast<const Word<count / 2>*>(codes) + group), scale.of(group * count / kBlock)};
  }
  template <int count> __device__ float value(const Read<count>& read, int i) const {
    const int byte = byte_of(read.word, i / 2);
    return __fmul_rn(values[i % 2 ? byte & 15 : byte >> 4], read.absmax);
  }
  __device__ float one(int64_t e) const {
    const int byte = codes[e / 2];
    return __fmul_rn(values[e % 2 ? byte & 15 : byte >> 4], scale.of(e / kBlock));
  }
};

struct Int8Source {
  static constexpr int kBits = 8;
  const uint8_t* codes;

  template <int count> struct Read {
    Word<count> word;
  };

  __device__ void choose(int64_t layer, int64_t elements) { codes += layer * elements; }
  template <int count> __device__ Read<count> read(int64_t group) const {
    return {__ldg(reinterpret_cast<const Word<count>*>(codes) + group)};
  }
  template <int count> __device__ float value(const Read<count>& read, int i) const {
    return static_cast<float>(static_cast<int8_t>(byte_of(read.word, i)));
  }
  __device__ float one(int64_t e) const { return static_cast<float>(static_cast<int8_t>(codes[e])); }
};

__device__ inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename Out, typename Source, int count>
__device__ inline void write(Out* out, const Source& source, const typename Source::template Read<count>& read) {
  union {
    typename Round<Out>::Pair pairs[count / 2];
    uint4 bits;
  } line;
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    const float first = source.template value<count>(read, i), second = source.template value<count>(read, i + 1);
    line.pairs[i / 2] = Round<Out>::two(first, second);
  }
  *reinterpret_cast<uint4*>(out) = line.bits;
}

template <typename Out, typename Source>
__global__ void __launch_bounds__(kThreads) dequantise(Source source, const Stack stack) {
  constexpr int kCount = 16 / sizeof(Out);  // elements in 16 bytes of the result
  Out* out = static_cast<Out*>(stack.out);
  const int64_t layer = min(max(static_cast<int64_t>(*stack.layer), int64_t{0}), stack.layers - 1);
  source.choose(layer, stack.elements);
  __syncthreads();

  const bool whole = aligned(source.codes, kCount * Source::kBits / 8) && aligned(out, 16);
  const int64_t groups = whole ? stack.elements / kCount : 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads * kReads + threadIdx.x; g < groups; g += step * kReads) {
    typename Source::template Read<kCount> reads[kReads];
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      if (g + i * kThreads < groups) reads[i] = source.template read<kCount>(g + i * kThreads);
    }
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      if (g + i * kThreads < groups) write<Out, Source, kCount>(out + (g + i * kThreads) * kCount, source, reads[i]);
    }
  }
  for (int64_t e = groups * kCount + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < stack.elements;
       e += step) {
    out[e] = Round<Out>::one(source.one(e));
  }
}

template <typename Out, typename Source>
cudaError_t launch_as(const Source& source, const Stack& stack, CUstream_st* stream) {
  if (stack.elements == 0) return cudaSuccess;
  const auto kernel = dequantise<Out, Source>;
  int device = 0, processors = 0, resident = 0;
  if (auto error = cudaGetDevice(&device)) return error;
  if (auto error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return error;
  if (auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0)) return error;
  const int64_t useful = ceil_div(stack.elements, 16 / sizeof(Out) * kThreads * kReads);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(useful, std::max(1, processors * resident))));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, source, stack);
}

template <typename Source> const char* launch(const Source& source, const Stack& stack, CUstream_st* stream) {
  cudaError_t error = cudaSuccess;
  switch (stack.type) {
    case Float::kBfloat16: error = launch_as<__nv_bfloat16>(source, stack, stream); break;
    case Float::kFloat16: error = launch_as<__half>(source, stack, stream); break;
    case Float::kFloat32: error = launch_as<float>(source, stack, stream); break;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* nf4(const Stack& stack, const Absmax& absmax, CUstream_st* stream) {
  const auto* codes = static_cast<const uint8_t*>(stack.codes);
  return launch(Nf4Source<PlainScale>{codes, PlainScale(absmax)}, stack, stream);
}

const char* nf4(const Stack& stack, const NestedAbsmax& absmax, CUstream_st* stream) {
  const auto* codes = static_cast<const uint8_t*>(stack.codes);
  return launch(Nf4Source<NestedScale>{codes, NestedScale(absmax)}, stack, stream);
}

const char* int8(const Stack& stack, CUstream_st* stream) {
  return launch(Int8Source{static_cast<const uint8_t*>(stack.codes)}, stack, stream);
}

}  // namespace bidora
