"""Dequantisation on CUDA: kernels in C++ behind `jax.ffi`, built once by `python -m bidora_jax.kernels.cuda.build`.

They are an option. Without them the same mathematics runs as XLA compiles it, with the same bits as its result.
"""
