"""A mesh changes nothing: steps over four virtual devices against one device's, in float64; and what those steps send.

models/spread.py and models/tensor.py on kernels/varying.py and kernels/table.py, with the losses of training/objective.py and
training/accumulation.py, and the scores of tasks/evaluation.py.
"""

import json

import jax
import jax.numpy as jnp
import meshes
import pytest
from forms import as_bits, quantised
from runs import once
from tiny import CONFIG, random_base

from bidora_jax.kernels.varying import axes_of, one_of, varying
from bidora_jax.models import spread
from bidora_jax.models.architectures.architecture import EMBEDDING, HEAD

LAWS = meshes.TESTED | meshes.SHARED


@pytest.fixture(scope="module")
def found(shared_folder):
    """What is found of all cases, by one process for all workers."""

    def make(folder):
        (folder / "found.json").write_text(json.dumps(meshes.compared(*LAWS)))

    return json.loads((once(shared_folder / "meshes", make) / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_a_step_on_a_mesh_is_the_step_of_one_device(found, name):
    """Sums over rows are made in another order; AdamW's first step multiplies what that changes."""
    assert found[name]["off"] < 1e-9
    one, many = found[name]["scores"]  # loss, accuracy and tokens of an evaluation; or the loss and all outputs
    assert many == pytest.approx(one, rel=1e-12)


DECODERS = [name for name, case in meshes.TESTED.items() if case.kind == "decoder"]


def gathered(found, name) -> list[tuple[bool, str]]:
    """(whether it stands in a loop, what it gives) of every gather of a step."""
    return [(inside, array) for kind, inside, arrays in found[name]["sent"] if kind == "all-gather" for array in arrays]


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_weights_are_gathered_a_layer_at_a_time_inside_the_loops_over_layers(found, name):
    case, gathers = meshes.TESTED[name], gathered(found, name)
    # Forward and backward: of the gradient, and of an exact step of its derivative and the upper loss too.
    passes = 6 if case.method == "bidora" else 2
    codes = {"nf4 nested": "u8[840] u8[280] u8[616]", "int8": "s8[60,28] s8[20,28] s8[28,60] s8[44,28] s8[28,44]"}[
        case.form
    ].split()
    assert set(codes) <= {array for _, array in gathers}
    assert sum(array in codes for _, array in gathers) == 7 * passes
    scales = {"nf4 nested": {"u8[20]"}, "int8": {"f32[60]", "f32[20]", "f32[28]", "f32[44]"}}[case.form]
    of_weights = [(inside, array) for inside, array in gathers if array in {*codes, *scales}]
    assert {array for _, array in of_weights} == {*codes, *scales}
    assert all(inside for inside, _ in of_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_an_embedding_is_gathered_a_block_at_a_time_and_looked_up_where_it_lies(found, name):
    """What a lookup gathers are the tokens of the devices that share an embedding, and what it sends are columns of their rows."""
    floats = {(inside, array) for inside, array in gathered(found, name) if array.startswith("f64")}
    assert floats and all(inside for inside, _ in floats)
    rows = [tuple(map(int, array[4:-1].split(","))) for _, array in floats]
    assert {columns for _, columns in rows} == {28} and max(count for count, _ in rows) < CONFIG.vocab_size
    shard, texts = meshes.TESTED[name].shard, {11, 10}  # a token each of a row, and of its targets
    assert {array for _, array in gathered(found, name) if array.startswith("s32")} == {
        f"s32[{shard * length}]" for length in texts
    }
    sent = {array for kind, _, arrays in found[name]["sent"] if kind == "all-to-all" for array in arrays}
    assert sent == {f"f64[{length},{28 // shard}]" for length in texts}


@pytest.mark.slow
@pytest.mark.parametrize("name", meshes.SHARED)
def test_devices_that_share_products_sum_two_outputs_a_layer_and_pass(found, name):
    """And nothing else of the size of activations; of a DoRA layer whose columns are cut, the two terms of its norm."""
    case, sent = meshes.SHARED[name], found[name]["sent"]
    sums = [array for kind, inside, arrays in sent if kind == "all-reduce" and inside for array in arrays]
    of_outputs, of_norms = (sums.count(array) for array in ("f64[2,11,28]", "f64[28]"))
    assert of_outputs + of_norms == len(sums)
    # o and down, forward and backward: of a gradient; of an exact step the tangents of both too, and the upper loss. Its first pass
    # leaves the forward sums to the second one.
    assert of_outputs == {"dora": 4, "bidora": 14}[case.method]
    # Constant in dora, and computed once; with derivatives in bidora.
    assert of_norms == {"dora": 4, "bidora": 40}[case.method]


@pytest.mark.slow
def test_of_int8_each_device_gathers_its_rows_and_exchanges_them_for_its_columns(found):
    sent = found["tensor, dora"]["sent"]
    codes = {kind: {one for k, _, arrays in sent if k == kind for one in arrays if one.startswith("s8")} for kind in
             ("all-gather", "all-to-all")}  # fmt: skip
    # Half of q, of k and v, of gate and up; of o and down halves that are then exchanged.
    assert codes["all-gather"] == {"s8[30,28]", "s8[10,28]", "s8[22,28]", "s8[14,60]", "s8[14,44]"}
    assert codes["all-to-all"] == {"s8[14,30]", "s8[14,22]"}


@pytest.mark.slow
@pytest.mark.parametrize("name", meshes.TESTED)
def test_all_else_that_is_sent_are_sums_after_the_loops(found, name):
    others = {(kind, inside) for kind, inside, _ in found[name]["sent"] if kind not in ("all-gather", "all-to-all")}
    assert others == {("all-reduce", False)}


@pytest.mark.parametrize("form", ["int8", "nf4", "nf4 nested", "bits", "none"])
def test_what_is_cut_are_embeddings_and_stacks_of_linear_layers(form):
    base = random_base(dtype=jnp.bfloat16 if form == "bits" else jnp.float32)
    base = {"bits": as_bits, "none": lambda base: base}.get(form, lambda base: quantised(base, form))(base)
    cut = spread._cut(base, 2)
    flags = jax.tree_util.tree_leaves_with_path(cut)
    assert {path[0].key for path, one in flags if one} == {"layers", *(key for key in base if key in (EMBEDDING, HEAD))}
    of_q = jax.tree.leaves(cut["layers"]["self_attn"]["q_proj"]["weight"])
    # 60·26 weights are 780 bytes of codes in 25 blocks of NF4, which two devices cannot share evenly: those stay whole.
    assert of_q == {"int8": [True, True], "nf4": [True, False], "nf4 nested": [True, False, False, False]}.get(
        form, [True]
    )
    assert not any(jax.tree.leaves((cut["layers"]["self_attn"]["q_norm"], cut["layers"]["input_layernorm"])))


def test_outside_of_a_map_nothing_is_traced():
    def f(x):
        assert axes_of(x) == frozenset() and one_of(x).shape == (5,)
        return varying(x, ())

    assert jax.make_jaxpr(f)(jnp.ones((3, 5))).eqns == []
