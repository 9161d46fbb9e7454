"""The one place that knows XLA's CPU backend: functions with a plain meaning of one line, in the form that it computes fast.

XLA compiles for a CPU with fewer cost models than for a GPU. These faults of it cost a step of a 16-bit model most, and each
module here goes round one of them. The times are of 2 cores of a Xeon with AMX, JAX 0.10, bfloat16, 1,024 tokens. The shares
are of a whole step of SmolLM2-135M's shape, measured one by one from 2026-11-26 to 2026-11-28 (benchmarks/LOG.md).

    module        plain meaning               the fault                                             what the detour is worth
    bfloat16      x.astype(dtype)             LLVM makes 16-bit arithmetic of what stands between   a gated unit 1.64 → 1.0 ms,
                                              two conversions                                       −3 % of a step
    transpose     x.swapaxes(i, j)            a 16-bit product whose operand is seen to be          half the time of the product,
                                              transposed is computed in float32                     −9 %
    reductions    jnp.sum(a * b, axis)        a sum goes to YNNPACK, and with it one float32        a norm and its gradient
                                              array for each elementwise operation around it        1.8 → 0.7 ms, −5 to −10 %
    outline       function(*args)             fusion recomputes a row's factor for every token,     the gain of DoRA computed once
                                              and indexes by divisions                              rather than 1,024 times
    scan          lax.scan                    a stack is filled with zeros when the step begins,    −45 % of temporaries, −3 %
                                              and a 16-bit one is widened at every layer
    weights       the stacked weight          a slice of 16-bit floats widens the whole stack       1.8 GB of temporaries less at
                                                                                                    Qwen3-0.6B's shape
    rows          function(*arrays)           the scores of a whole batch pass through memory       an encoder's attention and its
                                                                                                    gradient 47 → 31 ms

Nothing else in kernels/ or models/ asks which backend there is: forms for CUDA and for a TPU (xla_tpu.py) are branches, of which a
program has the one of its platform (quantized.py). BIDORA_PLAIN=1 in the environment switches every detour off. Results are then
equal to rounding: a test holds a whole step to its plain twin, and `benchmarks/speed/bench_speed.py` says what all detours together
are worth.
"""

import os

import jax


def active() -> bool:
    """Whether programs are compiled for a CPU and the detours are not switched off. Asked while a function is traced."""
    return jax.default_backend() == "cpu" and os.environ.get("BIDORA_PLAIN") != "1"
