"""Arrays in, arrays out: the mathematics of the package, on jax alone.

One alphabet of dimensions is used in shapes, einsum strings and configurations everywhere:

    B batch   T tokens   D model   F feed-forward   V vocabulary   L layers   N tokens of a flattened batch
    H query heads   K key/value heads   G query heads per key/value head   h head dimension
    I in   O out   r rank

Weights keep the Hugging Face layout: a linear weight is (O, I), A is (r, I), B is (O, r), m is (O,).
Accumulation, norms, softmax and losses are float32 (float64 when the inputs are).
"""
