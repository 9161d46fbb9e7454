// The targets in plain C++ for the CPU: the same names, operands and checks, the formula of dequantise.h in plain loops.
// Tests run it where there is no GPU. Compile with -ffp-contract=off: a fused multiply-add would round nested scales once.
#include <cstring>

#include "checks.h"
#include "tables.h"

namespace bidora {
namespace {

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void store(const Stack& stack, int64_t e, float value) {
  switch (stack.type) {
    case Float::kBfloat16: static_cast<uint16_t*>(stack.out)[e] = to_bfloat16(value); break;
    case Float::kFloat16: static_cast<_Float16*>(stack.out)[e] = static_cast<_Float16>(value); break;
    case Float::kFloat32: static_cast<float*>(stack.out)[e] = value; break;
  }
}

int64_t chosen(const Stack& stack) {
  const int64_t layer = *stack.layer;
  return layer < 0 ? 0 : layer < stack.layers ? layer : stack.layers - 1;
}

template <typename Scale> void decode(const Stack& stack, Scale scale_of) {
  const auto* codes = static_cast<const uint8_t*>(stack.codes) + chosen(stack) * ceil_div(stack.elements, 2);
  for (int64_t e = 0; e < stack.elements; ++e) {
    const int code = e % 2 ? codes[e / 2] & 15 : codes[e / 2] >> 4;
    store(stack, e, kNf4[code] * scale_of(e / kBlock));
  }
}

ffi::Error run_nf4(ffi::AnyBuffer codes, ffi::AnyBuffer absmax, ffi::AnyBuffer layer,
                   ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  Absmax scale;
  if (auto error = check_nf4(codes, absmax, layer, *out, &stack, &scale); error.failure()) return error;
  const float* values = scale.values + chosen(stack) * ceil_div(stack.elements, kBlock);
  decode(stack, [=](int64_t block) { return values[block]; });
  return ffi::Error::Success();
}

ffi::Error run_nf4_nested(ffi::AnyBuffer codes, ffi::AnyBuffer absmax_codes, ffi::AnyBuffer nested_absmax,
                          ffi::AnyBuffer offset, ffi::AnyBuffer layer, ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  NestedAbsmax scale;
  auto error = check_nf4_nested(codes, absmax_codes, nested_absmax, offset, layer, *out, &stack, &scale);
  if (error.failure()) return error;
  const int64_t blocks = ceil_div(stack.elements, kBlock);
  const uint8_t* scale_codes = scale.codes + chosen(stack) * blocks;
  const float* nested = scale.nested + chosen(stack) * ceil_div(blocks, kNestedBlock);
  const float shift = scale.offset[chosen(stack)];
  decode(stack, [=](int64_t block) {
    const float product = dynamic8(scale_codes[block]) * nested[block / kNestedBlock];
    return product + shift;
  });
  return ffi::Error::Success();
}

ffi::Error run_int8(ffi::AnyBuffer codes, ffi::AnyBuffer layer, ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  if (auto error = check_int8(codes, layer, *out, &stack); error.failure()) return error;
  const auto* values = static_cast<const int8_t*>(stack.codes) + chosen(stack) * stack.elements;
  for (int64_t e = 0; e < stack.elements; ++e) store(stack, e, values[e]);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bidora

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_nf4, bidora::run_nf4);
XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_nf4_nested, bidora::run_nf4_nested);
XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_int8, bidora::run_int8);

#pragma GCC visibility pop
