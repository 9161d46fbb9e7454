// Dequantisation of one layer out of a stack of layers: what the kernels take, and how they are launched.
//
//     NF4      w[e] = round(code[nibble e] * absmax[e / 64])
//     nested   absmax[b] = fl(fl(dynamic[absmax_codes[b]] * nested_absmax[b / 256]) + offset)
//     int8     w[e] = codes[e]
//
// e counts the elements of the layer's (O, I) weight row by row. Element 2i is the HIGH nibble of byte i, 2i + 1 the low
// one. Products and sums are float32, each rounded by itself (no fused multiply-add), and w is rounded once, to nearest
// even: the result is equal bit for bit to bitsandbytes and to the XLA form.
//
// Every pointer of these structures is to device memory (to host memory for the CPU twin), the layer index included, so
// that a loop over layers neither copies a slice nor waits for the device.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t is a pointer to it; named here so that only the .cu file needs CUDA's headers

#ifdef __CUDACC__
#define BIDORA_EVERYWHERE __host__ __device__
#else
#define BIDORA_EVERYWHERE
#endif

namespace bidora {

constexpr int64_t kBlock = 64;         // elements that share one absmax
constexpr int64_t kNestedBlock = 256;  // absmax codes that share one nested_absmax

enum class Float { kBfloat16, kFloat16, kFloat32 };

struct Stack {
  const void* codes;     // (L, bytes of one layer)
  const int32_t* layer;  // which one; clamped to [0, L)
  int64_t layers;        // L
  int64_t elements;      // O * I
  void* out;             // (O, I) of `type`
  Float type;
};

struct Absmax {
  const float* values;  // (L, blocks)
};

struct NestedAbsmax {
  const uint8_t* codes;  // (L, blocks)
  const float* nested;   // (L, ceil(blocks / 256))
  const float* offset;   // (L,)
};

BIDORA_EVERYWHERE constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Each launches on `stream` and returns at once, with nullptr or with the words of what CUDA refused.
const char* nf4(const Stack& stack, const Absmax& absmax, CUstream_st* stream);
const char* nf4(const Stack& stack, const NestedAbsmax& absmax, CUstream_st* stream);
const char* int8(const Stack& stack, CUstream_st* stream);

}  // namespace bidora
