// What the targets take, checked in one place for the CUDA handlers and for the CPU twin.
//
// A refusal names the target and every operand that does not fit, with what it is and what it should be.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "dequantise.h"
#include "xla/ffi/api/ffi.h"

namespace bidora {

namespace ffi = xla::ffi;
using Dims = std::vector<int64_t>;

struct Operand {
  const char* name;
  ffi::AnyBuffer buffer;
  ffi::DataType type;
  Dims dims;
};

inline Dims dims_of(const ffi::AnyBuffer& buffer) {
  return Dims(buffer.dimensions().begin(), buffer.dimensions().end());
}

inline std::string spelt(ffi::DataType type) {
  switch (type) {
    case ffi::U8: return "uint8";
    case ffi::S8: return "int8";
    case ffi::S32: return "int32";
    case ffi::S64: return "int64";
    case ffi::F16: return "float16";
    case ffi::BF16: return "bfloat16";
    case ffi::F32: return "float32";
    case ffi::F64: return "float64";
    default: return "XLA's type " + std::to_string(static_cast<int>(type));
  }
}

inline std::string spelt(const Dims& dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + (dims.size() == 1 ? ",)" : ")");
}

inline ffi::Error refuse(const std::string& target, const std::string& reason) {
  return ffi::Error::InvalidArgument("bidora_" + target + ": " + reason);
}

inline ffi::Error check_operands(const std::string& target, std::initializer_list<Operand> operands) {
  std::string wrong;
  for (const Operand& one : operands) {
    const Dims dims = dims_of(one.buffer);
    if (one.buffer.element_type() == one.type && dims == one.dims) continue;
    wrong += std::string(wrong.empty() ? "" : "; ") + one.name + " is " + spelt(one.buffer.element_type()) + " " +
             spelt(dims) + ", not " + spelt(one.type) + " " + spelt(one.dims);
  }
  return wrong.empty() ? ffi::Error::Success() : refuse(target, wrong);
}

// The parts that all targets share. `layers` is read off the codes, whose first axis it is.
inline ffi::Error read_stack(const std::string& target, const ffi::AnyBuffer& codes, const ffi::AnyBuffer& layer,
                             const ffi::AnyBuffer& out, Stack* stack) {
  const Dims shape = dims_of(out), code_dims = dims_of(codes);
  if (shape.size() != 2) return refuse(target, "the result is " + spelt(shape) + ", not (O, I)");
  if (code_dims.empty() || code_dims[0] < 1) {
    return refuse(target, "codes is " + spelt(code_dims) + ", not a stack of one layer or more");
  }
  switch (out.element_type()) {
    case ffi::BF16: stack->type = Float::kBfloat16; break;
    case ffi::F16: stack->type = Float::kFloat16; break;
    case ffi::F32: stack->type = Float::kFloat32; break;
    default:
      return refuse(target, "the result is " + spelt(out.element_type()) + ", not bfloat16, float16 or float32");
  }
  stack->codes = codes.untyped_data();
  stack->layer = static_cast<const int32_t*>(layer.untyped_data());
  stack->layers = code_dims[0];
  stack->elements = shape[0] * shape[1];
  stack->out = out.untyped_data();
  return ffi::Error::Success();
}

inline ffi::Error check_nf4(const ffi::AnyBuffer& codes, const ffi::AnyBuffer& absmax, const ffi::AnyBuffer& layer,
                            const ffi::AnyBuffer& out, Stack* stack, Absmax* scale) {
  if (auto error = read_stack("nf4", codes, layer, out, stack); error.failure()) return error;
  scale->values = static_cast<const float*>(absmax.untyped_data());
  return check_operands("nf4", {
      {"codes", codes, ffi::U8, {stack->layers, ceil_div(stack->elements, 2)}},
      {"absmax", absmax, ffi::F32, {stack->layers, ceil_div(stack->elements, kBlock)}},
      {"layer", layer, ffi::S32, {}},
  });
}

inline ffi::Error check_nf4_nested(const ffi::AnyBuffer& codes, const ffi::AnyBuffer& absmax_codes,
                                   const ffi::AnyBuffer& nested_absmax, const ffi::AnyBuffer& offset,
                                   const ffi::AnyBuffer& layer, const ffi::AnyBuffer& out, Stack* stack,
                                   NestedAbsmax* scale) {
  if (auto error = read_stack("nf4_nested", codes, layer, out, stack); error.failure()) return error;
  scale->codes = static_cast<const uint8_t*>(absmax_codes.untyped_data());
  scale->nested = static_cast<const float*>(nested_absmax.untyped_data());
  scale->offset = static_cast<const float*>(offset.untyped_data());
  const int64_t blocks = ceil_div(stack->elements, kBlock);
  return check_operands("nf4_nested", {
      {"codes", codes, ffi::U8, {stack->layers, ceil_div(stack->elements, 2)}},
      {"absmax_codes", absmax_codes, ffi::U8, {stack->layers, blocks}},
      {"nested_absmax", nested_absmax, ffi::F32, {stack->layers, ceil_div(blocks, kNestedBlock)}},
      {"offset", offset, ffi::F32, {stack->layers}},
      {"layer", layer, ffi::S32, {}},
  });
}

inline ffi::Error check_int8(const ffi::AnyBuffer& codes, const ffi::AnyBuffer& layer, const ffi::AnyBuffer& out,
                             Stack* stack) {
  if (auto error = read_stack("int8", codes, layer, out, stack); error.failure()) return error;
  const Dims shape = dims_of(out);
  return check_operands("int8", {
      {"codes", codes, ffi::S8, {stack->layers, shape[0], shape[1]}},
      {"layer", layer, ffi::S32, {}},
  });
}

}  // namespace bidora
