// The targets that XLA calls on a CUDA device. They check, launch on the stream they are given, and return: no memory is
// taken and nothing is waited for, so that XLA may record them into a CUDA graph.
#include <string>

#include "checks.h"

namespace bidora {
namespace {

using Stream = ffi::PlatformStream<CUstream_st*>;

ffi::Error launched(const std::string& target, const char* refusal) {
  if (refusal == nullptr) return ffi::Error::Success();
  return ffi::Error::Internal("bidora_" + target + ": CUDA refused the launch: " + refusal);
}

ffi::Error run_nf4(CUstream_st* stream, ffi::AnyBuffer codes, ffi::AnyBuffer absmax, ffi::AnyBuffer layer,
                   ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  Absmax scale;
  if (auto error = check_nf4(codes, absmax, layer, *out, &stack, &scale); error.failure()) return error;
  return launched("nf4", nf4(stack, scale, stream));
}

ffi::Error run_nf4_nested(CUstream_st* stream, ffi::AnyBuffer codes, ffi::AnyBuffer absmax_codes,
                          ffi::AnyBuffer nested_absmax, ffi::AnyBuffer offset, ffi::AnyBuffer layer,
                          ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  NestedAbsmax scale;
  auto error = check_nf4_nested(codes, absmax_codes, nested_absmax, offset, layer, *out, &stack, &scale);
  if (error.failure()) return error;
  return launched("nf4_nested", nf4(stack, scale, stream));
}

ffi::Error run_int8(CUstream_st* stream, ffi::AnyBuffer codes, ffi::AnyBuffer layer, ffi::Result<ffi::AnyBuffer> out) {
  Stack stack;
  if (auto error = check_int8(codes, layer, *out, &stack); error.failure()) return error;
  return launched("int8", int8(stack, stream));
}

}  // namespace
}  // namespace bidora

namespace ffi = xla::ffi;

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_nf4, bidora::run_nf4,
                              ffi::Ffi::Bind()
                                  .Ctx<bidora::Stream>()
                                  .Arg<ffi::AnyBuffer>()   // codes
                                  .Arg<ffi::AnyBuffer>()   // absmax
                                  .Arg<ffi::AnyBuffer>()   // layer
                                  .Ret<ffi::AnyBuffer>(),  // (O, I)
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_nf4_nested, bidora::run_nf4_nested,
                              ffi::Ffi::Bind()
                                  .Ctx<bidora::Stream>()
                                  .Arg<ffi::AnyBuffer>()   // codes
                                  .Arg<ffi::AnyBuffer>()   // absmax_codes
                                  .Arg<ffi::AnyBuffer>()   // nested_absmax
                                  .Arg<ffi::AnyBuffer>()   // offset
                                  .Arg<ffi::AnyBuffer>()   // layer
                                  .Ret<ffi::AnyBuffer>(),  // (O, I)
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bidora_int8, bidora::run_int8,
                              ffi::Ffi::Bind()
                                  .Ctx<bidora::Stream>()
                                  .Arg<ffi::AnyBuffer>()   // codes
                                  .Arg<ffi::AnyBuffer>()   // layer
                                  .Ret<ffi::AnyBuffer>(),  // (O, I)
                              {ffi::Traits::kCmdBufferCompatible});

#pragma GCC visibility pop
