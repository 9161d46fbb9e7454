"""Steps as XLA compiles them for a GPU, which need not be there: benchmarks/gpu/gpu_target.py and what its programs are made of."""

import sys

import hlo
import jax
import jax.numpy as jnp
import pytest
from runs import ROOT

from bidora_jax.data.settings import DataConfig
from bidora_jax.kernels.cuda import build, ops
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures import decoder
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import plans, remat_choice
from bidora_jax.training.compiled_steps import CompiledStep
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

pytest.importorskip(
    "jax_cuda13_plugin", reason="XLA's compiler for GPUs is not installed: pip install -e '.[gpu-compiler]'"
)
sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
import gpu_target
import kernel_bounds

LAYERS, TOKENS = 3, 96
CONFIG = DecoderConfig(
    vocab_size=1536, hidden_size=512, intermediate_size=1344, num_layers=LAYERS, num_heads=8, num_kv_heads=2, head_dim=64,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, qk_norm=True, qkv_bias=False, o_bias=False,
    max_position_embeddings=512,
)  # fmt: skip


def step(method: str, **model):
    """A step of one record on each level, compiled for an H100."""
    with gpu_target.named("h100"):
        settings = ModelConfig(dtype="bfloat16", attention="chunked", **model)
        adapter = adapters.resolve(AdapterConfig(method=method, rank=1), CONFIG)
        data = DataConfig(batch_size=1, max_length=TOKENS, buckets=1)
        base = quantization.base_shapes(settings, CONFIG, jnp.bfloat16)
        problem = remat_choice.synthetic(CONFIG, settings, adapter, base, data, TOKENS)
        search = SearchConfig(steps=1, hypergradient="exact")
        phase, start = first_phase(method, problem, search, OptimizerConfig(), OptimizerConfig())
        program, length = remat_choice.largest(phase)
        return program.compile(start.state, length)


@pytest.fixture(scope="module")
def exact():
    return step("bidora", remat="dots")


def test_no_base_matrix_is_widened(exact):
    matrices = set(decoder.linear_shapes(CONFIG).values()) | {(CONFIG.vocab_size, CONFIG.hidden_size)}
    widened = {
        shape for shape in hlo.arrays(exact, "f32") if tuple(n for n in shape if n not in (1, LAYERS))[-2:] in matrices
    }
    assert not widened
    assert (LAYERS, CONFIG.intermediate_size, CONFIG.hidden_size) in hlo.arrays(exact, "bf16")


def test_an_exact_step_has_the_products_that_planning_counts(exact):
    plan = plans.Plan(
        ModelConfig(remat="dots"), AdapterConfig(rank=1), DataConfig(batch_size=1, accumulation=1, max_length=TOKENS),
        search=SearchConfig(hypergradient="exact"),
    )  # fmt: skip
    counted = plans.arithmetic(CONFIG, plan)
    products = [one for one in kernel_bounds.kernels(exact.as_text()) if one.kind == "product"]
    found = sum(one.calls * one.operations for one in products)
    one_more = 2 * TOKENS * LAYERS * sum(o * i for o, i in decoder.linear_shapes(CONFIG).values())
    # Above the frozen products stand those of attention and of the low rank, which are less than another pass over the layers.
    assert counted < found < counted + one_more


def test_the_ops_take_the_whole_stack_of_a_quantised_weight(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(ops, "available", lambda: True)
    # Only the names are needed: what stands behind them is not called here.
    ops._register(build.build_twin(tmp_path_factory.mktemp("twin")), "CUDA")
    program = step("lora", remat="layer", quantization="nf4")
    calls = hlo.foreign_kernels(program, "bidora_nf4_nested")
    assert len(calls) == 2 * 7  # once in the forward and once in the backward pass
    opened = [one for one in kernel_bounds.kernels(program.as_text()) if one.source.endswith("ffi_call")]
    assert len(opened) == len(calls) and {one.calls for one in opened} == {LAYERS}
    # Half a byte, the block's scale in one, and two for the weight; the group's scale and the offset are less than all that.
    linears = sum(o * i for o, i in decoder.linear_shapes(CONFIG).values())
    read = sum(one.bytes for one in opened) / 2
    assert (0.5 + 1 / 64 + 2) * linears < read < 2.6 * linears
    codes = {str(o * i // 2) for o, i in decoder.linear_shapes(CONFIG).values()}
    stacks = hlo.arrays(program, "u8")
    assert {(LAYERS, int(size)) for size in codes} <= stacks
    assert not {(1, int(size)) for size in codes} & stacks and not {(int(size),) for size in codes} & stacks


def test_offload_moves_the_sums_to_the_host_and_back():
    assert not hlo.uses_host_memory(step("lora", remat="dots"))
    assert hlo.uses_host_memory(step("lora", remat="offload"))


def test_bounds_count_loops_slices_and_products():
    def scanned(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w).astype(x.dtype), None), x, stack)[0]

    x, stack = jax.ShapeDtypeStruct((256, 128), jnp.bfloat16), jax.ShapeDtypeStruct((5, 128, 128), jnp.bfloat16)
    with gpu_target.named("a100"):
        program = CompiledStep("a step", lambda x, stack, *_: scanned(x, stack), stack, lambda _: (), (1,))
        found = kernel_bounds.kernels(program.compile(x, 1).as_text())
    products = [one for one in found if one.kind == "product"]
    assert sum(one.calls * one.operations for one in products) == 5 * 2 * 256 * 128 * 128
    # A layer's matrix is at most copied and read, and the stack is read as often as it has layers, not five times that.
    layer, rows = 2 * 128 * 128, 2 * 256 * 128
    least, most = 5 * (layer + 2 * rows), 5 * (3 * layer + 8 * rows) + 4 * rows
    assert least <= sum(one.calls * one.bytes for one in found) <= most
