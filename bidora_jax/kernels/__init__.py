"""Arrays in, arrays out: the mathematics of the package, on jax alone.

One alphabet of dimensions is used in shapes, einsum strings and configurations everywhere:

    B batch   T tokens   D model   F feed-forward   V vocabulary   L layers   N tokens of a flattened batch
    H query heads   K key/value heads   G query heads per key/value head   h head dimension
    I in   O out   r rank

Weights keep the Hugging Face layout: a linear weight is (O, I), A is (r, I), B is (O, r), m is (O,).
Accumulation, norms, softmax and losses are float32 (float64 when the inputs are).

Which derivatives a function has stands in this table, and a test tries every cell of it (tests/kernels/test_derivatives.py).
`yes` is the derivative of the function's formula, `wide` that for float32 and float64 but an error for 16-bit floats, and `no` an
error for all. Forward over reverse is what the mixed product of a bilevel step takes. `vmap` maps over a leading axis; what
declares a product linear in one factor (`linear_call`) can't be mapped over.

    function                              reverse  forward  fwd over rev  rev over rev  vmap
    matmul.frozen_dot                     yes      yes      yes           yes           wide
    matmul.frozen_times                   yes      yes      yes           yes           wide
    matmul.product                        yes      no       yes           yes           yes
    matmul.matmul                         yes      no       yes           yes           yes
    matmul.matmul_transposed_left         yes      yes      yes           yes           wide
    dora.row_norm                         yes      yes      yes           yes           wide
    dora.gain                             yes      yes      yes           yes           yes
    row_gain.save_scaled                  yes      yes      yes           yes           yes
    row_gain.scaled                       yes      no       yes           yes           yes
    norms.rms_norm                        yes      no       yes           yes           yes
    norms.layer_norm                      yes      no       yes           yes           yes
    activations.activate                  yes      yes      yes           yes           yes
    activations.gated                     yes      yes      yes           yes           yes
    rope.rope                             yes      yes      yes           yes           yes
    swiglu.swiglu                         yes      no       yes           yes           wide
    attention.causal_attention            yes      no       yes           yes           wide
    attention.fused_attention             yes      no       no            no            yes
    encoder_attention.segment_attention   yes      no       yes           yes           wide
    disentangled.position_scores          yes      no       yes           yes           wide
    losses.cross_entropy_sum              yes      no       yes           yes           wide
    losses.trained_cross_entropy_sum      yes      yes      yes           yes           yes
    losses.gram_penalty                   yes      yes      yes           yes           yes
    class_losses.cross_entropy            yes      yes      yes           yes           yes
    class_losses.token_cross_entropy      yes      yes      yes           yes           yes
    class_losses.binary_cross_entropy     yes      yes      yes           yes           yes
    class_losses.mean_square              yes      yes      yes           yes           yes
    xla_cpu.reductions.row_sums           yes      yes      yes           yes           yes
    xla_cpu.reductions.row_dots           yes      yes      yes           yes           yes
    xla_cpu.reductions.token_dots         yes      yes      yes           yes           yes
    xla_cpu.transpose.transpose           yes      yes      yes           yes           wide
    xla_cpu.outline.outlined              yes      yes      yes           yes           yes
    xla_cpu.bfloat16.to_float32           yes      yes      yes           yes           wide
    xla_cpu.bfloat16.to_bfloat16          yes      yes      yes           yes           wide

fused_attention stands for cuDNN's kernels; JAX's own form of the same call has more. The functions of known_values.py have the
derivatives that their docstrings give, which are not those of a formula. Quantised weights have none.
"""
