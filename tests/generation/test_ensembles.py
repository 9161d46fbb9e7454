"""Several adapters over one base, held to what is computed outside: means of logits, of probabilities, of merged weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import quantised
from random_adapters import KINDS, random_adapter
from tiny import CONFIG, random_base

from bidora_jax.errors import InputError
from bidora_jax.generation import answers, decoding, ensembles
from bidora_jax.generation.answers import complete
from bidora_jax.generation.ensembles import Member
from bidora_jax.kernels import quantized
from bidora_jax.models import decoder, linear
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.adapter import get
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import peft
from bidora_jax.models.settings import ModelConfig
from bidora_jax.tasks import evaluation

MIXES = {
    "loras": ("lora", "narrow"), "doras": ("dora", "bidora"), "all": ("lora", "narrow", "dora", "bidora"),
    "layers": ("uneven", "one layer"), "starts": ("pissa", "olora", "uneven"),
}  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(3).integers(CONFIG.vocab_size, size=(2, 11), dtype=np.int32))
MASK = jnp.asarray(np.random.default_rng(4).random((2, 11)) < 0.7, jnp.float32)
FORWARD = jax.jit(decoder.logits, static_argnums=(0, 1))
PROMPTS = [[5, 71, 3, 8, 8, 1, 33, 20, 9, 60, 2], [44, 7, 12, 90]]


@pytest.fixture(scope="module")
def base():
    return random_base()


def members(base, mix) -> list[Member]:
    found = []
    for number, name in enumerate(MIXES[mix]):
        adapter, direction, magnitude = random_adapter(KINDS[name], base=base)
        turned = jax.tree.map(lambda leaf, number=number: jnp.roll(leaf, number, axis=1), direction)
        found.append(Member(adapter, turned, magnitude))
    return found


def logits(base, member, tokens=TOKENS) -> np.ndarray:
    prepared = initial.prepare_base(base, member.adapter)
    return np.asarray(FORWARD(CONFIG, *_over(prepared, member), jnp.asarray(tokens)), np.float64)


def _over(base, member):
    return member.adapter, base, member.direction, member.magnitude


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.mark.parametrize("mix", MIXES)
def test_adapters_at_rest_are_the_same_functions_in_one_shape(base, mix):
    given = members(base, mix)
    rested = ensembles.inference_form(base, given)
    shapes = {str((member.adapter, jax.tree.map(jnp.shape, member[1:]))) for member in rested}
    assert len(shapes) == 1
    for before, after in zip(given, rested, strict=True):
        found = np.asarray(FORWARD(CONFIG, *_over(base, after), TOKENS))
        np.testing.assert_allclose(found, logits(base, before), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_gain_of_a_quantised_base_is_the_layers(base, form):
    packed = quantised(base, form)
    member = members(packed_dense(packed), "doras")[1]
    rested = ensembles.inference_form(packed, [member])[0]
    found = np.asarray(FORWARD(CONFIG, *_over(packed, rested), TOKENS))
    np.testing.assert_allclose(found, logits(packed, member), rtol=1e-3, atol=1e-3)
    stack = packed["layers"]["mlp"]["down_proj"]["weight"]
    prepared = initial.prepare_base(packed, member.adapter)["layers"]["mlp"]["down_proj"]
    factors = get(member.direction["layers"], "mlp.down_proj")
    direction = linear.dora.Direction(factors["A"][1], factors["B"][1])
    m = get(member.magnitude["layers"], "mlp.down_proj")["m"][1]
    layer = quantized.Layer(stack, jnp.int32(1))
    adapted = member.adapter.at("mlp.down_proj")
    expected = linear.row_gain(adapted, layer, direction, adapted.scale, m, prepared["norm_sq"][1])
    np.testing.assert_allclose(rested.magnitude["layers"]["mlp"]["down_proj"]["gain"][1], expected, rtol=1e-5)


def packed_dense(base):
    return merging.dequantise(base)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5, 0.25]])
def test_the_average_is_the_mean_of_the_merged_matrices(base, mix, weights):
    given = members(base, mix)
    shares = np.array([1.0] * len(given) if weights is None else weights[: len(given)])
    shares = shares / shares.sum()
    averaged = ensembles.average(ensembles.inference_form(base, given), weights and weights[: len(given)])
    assert averaged.adapter.magnitude == (mix != "loras")
    merged = [merging.merge(m.adapter, initial.prepare_base(base, m.adapter), *m[1:]) for m in given]
    for path in averaged.adapter.targets:
        w0 = np.asarray(get(base["layers"], path)["weight"])
        expected = sum(s * np.asarray(get(m["layers"], path)["weight"]) for s, m in zip(shares, merged, strict=True))
        factors = get(averaged.direction["layers"], path)
        found = w0 + np.asarray(factors["B"] @ factors["A"])
        if averaged.adapter.magnitude:
            found = found * np.asarray(get(averaged.magnitude["layers"], path)["gain"])[:, :, None]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_average_is_not_that_of_the_factors(base):
    """The means of A and of B make another matrix, which the layout of an average must not be mistaken for."""
    given = ensembles.inference_form(base, members(base, "loras"))
    averaged = ensembles.average(given)
    assert averaged.adapter.sites[0].rank == sum(member.adapter.sites[0].rank for member in given)
    factors = [get(member.direction["layers"], "self_attn.q_proj") for member in given]
    naive = sum(f["B"] for f in factors) / 2 @ (sum(f["A"] for f in factors) / 2)
    found = get(averaged.direction["layers"], "self_attn.q_proj")
    assert np.abs(found["B"] @ found["A"] - naive).max() > 0.1


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
@pytest.mark.parametrize("mix", ["loras", "all", "starts"])
def test_an_ensembles_loss_is_that_of_the_mean_computed_outside(base, mix, combine):
    given = members(base, mix)
    each = np.stack([logits(base, member) for member in given])
    p = softmax(each.mean(0)) if combine == "logits" else softmax(each).mean(0)
    picked = np.take_along_axis(p[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    weights = np.asarray(MASK)[:, 1:]
    expected = -(np.log(picked) * weights).sum() / weights.sum()
    stacked = ensembles.stack(ensembles.inference_form(base, given))
    measure = evaluation.evaluator(CONFIG, stacked.adapter, ModelConfig(loss_chunk=6), combine)
    batch = {"tokens": np.asarray(TOKENS)[None], "loss_mask": np.asarray(MASK)[None]}
    found = measure(base, stacked.direction, stacked.magnitude, [batch])
    assert found.loss == pytest.approx(expected, rel=1e-4)
    assert found.tokens == weights.sum()


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
@pytest.mark.parametrize(("form", "mix"), [("dense", "all"), ("nf4", "all"), ("dense", "starts"), ("nf4", "layers")])
def test_an_ensemble_writes_the_most_probable_token_of_the_mean(base, form, mix, combine):
    base = quantised(base, form) if form == "nf4" else base
    given = members(merging.dequantise(base), mix)
    stacked = ensembles.stack(ensembles.inference_form(base, given))
    model = decoding.assemble(CONFIG, base, *stacked, combine=combine)
    found = answers.complete(model, PROMPTS, max_new_tokens=6, ends=[10**6])
    texts = [prompt + piece.tokens for prompt, piece in zip(PROMPTS, found, strict=True)]
    padded = np.array([text + [0] * (17 - len(text)) for text in texts])
    each = np.stack([logits(base, member, padded) for member in given])
    best = (each.mean(0) if combine == "logits" else softmax(each).mean(0)).argmax(-1)
    for row, prompt, piece in zip(best, PROMPTS, found, strict=True):
        assert piece.tokens == row[len(prompt) - 1 :][:6].tolist()


def test_an_ensemble_of_one_adapter_twice_is_that_adapter(base):
    """On 16-bit weights, whose products are of another kind, members stand where rows do: the sums are the same ones."""
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    member = ensembles.inference_form(narrow, members(base, "doras"))[1]
    model = decoding.assemble(CONFIG, narrow)
    both = decoding.with_adapter(model, *ensembles.stack([member, member]), combine="logits")
    alone = decoding.with_adapter(model, *member)
    found, expected = (answers.complete(m, PROMPTS, max_new_tokens=6, ends=[10**6]) for m in (both, alone))
    assert found == expected


@pytest.mark.parametrize("mix", ["all", "layers", "starts"])
def test_switching_compiles_nothing_and_answers_as_each_alone(base, mix):
    given = members(base, mix)
    rested = ensembles.inference_form(base, given)
    model = decoding.assemble(CONFIG, base)

    def answers(model):
        return complete(model, PROMPTS, max_new_tokens=6, ends=[10**6])

    first = answers(decoding.with_adapter(model, *rested[0]))
    before = decoding._prefill._cache_size(), decoding._decode._cache_size()
    found = [first, *(answers(decoding.with_adapter(model, *member)) for member in rested[1:])]
    assert (decoding._prefill._cache_size(), decoding._decode._cache_size()) == before
    for member, text in zip(given, found, strict=True):
        prepared = initial.prepare_base(base, member.adapter)
        assert answers(decoding.assemble(CONFIG, prepared, *member)) == text
    assert len({str(text) for text in found}) == len(given)


def test_evaluating_another_adapter_compiles_nothing(base):
    rested = ensembles.inference_form(base, members(base, "doras"))
    traced = []
    measure = evaluation.evaluator(CONFIG, rested[0].adapter, ModelConfig())
    batch = {"tokens": np.asarray(TOKENS)[None], "loss_mask": np.asarray(MASK)[None]}
    with jax.log_compiles():
        measure(base, *rested[0][1:], [batch])
    with jax.no_tracing():
        traced.append(measure(base, *rested[1][1:], [batch]))
    assert traced[0].loss != measure(base, *rested[0][1:], [batch]).loss


# Modules trained whole

WHOLE = AdapterConfig(
    "bidora", rank=3, target_modules=("q_proj", "up_proj"), modules_to_save=("lm_head", "embed_tokens")
)


@pytest.mark.parametrize("saved", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_what_is_trained_whole_answers_as_the_logits_say(base, saved):
    member = Member(*random_adapter(replace(WHOLE, modules_to_save=saved), base=base))
    prepared = initial.prepare_base(base, member.adapter)
    found = answers.complete(decoding.assemble(CONFIG, prepared, *member), PROMPTS, max_new_tokens=6, ends=[10**6])
    padded = np.array([text + [0] * (17 - len(text)) for text in _texts(found)])
    best = logits(base, member, padded).argmax(-1)
    for row, prompt, piece in zip(best, PROMPTS, found, strict=True):
        assert piece.tokens == row[len(prompt) - 1 :][:6].tolist()
    run, chosen = ensembles.for_serving(base, {"mine": member}, None, False, ())
    again = decoding.with_adapter(decoding.assemble(CONFIG, run), *chosen["mine"])
    assert answers.complete(again, PROMPTS, max_new_tokens=6, ends=[10**6]) == found
    plain = decoding.with_adapter(decoding.assemble(CONFIG, base), *chosen["mine"])
    assert answers.complete(plain, PROMPTS, max_new_tokens=6, ends=[10**6]) != found


def _texts(found):
    return [prompt + piece.tokens for prompt, piece in zip(PROMPTS, found, strict=True)]


def test_what_is_trained_whole_shares_no_base(base):
    whole, plain = Member(*random_adapter(WHOLE, base=base)), members(base, "loras")[0]
    with pytest.raises(InputError, match=r"whole .*\n.*mine: embed_tokens and lm_head\n.*use such an adapter alone"):
        ensembles.check({"mine": whole, "other": plain}, None, False, ())
    with pytest.raises(InputError, match="adapter 2: embed_tokens and lm_head"):
        ensembles.inference_form(base, [plain, whole])
    with pytest.raises(InputError, match="cannot be switched in a model"):
        decoding.with_adapter(decoding.assemble(CONFIG, base), *whole)


# Folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("adapters")
    for name in ("lora", "dora"):
        adapter, *trained = random_adapter(KINDS[name], base=base)
        peft.save_adapter(root / name, CONFIG, adapter, KINDS[name], *trained, base_model_name="x")
    return root


def test_adapters_are_loaded_by_name_or_by_folder(folders):
    found = ensembles.load([f"mine={folders}/lora", f"{folders}/dora"], CONFIG)
    assert list(found) == ["mine", f"{folders}/dora"]
    assert [member.adapter.sites[0].rank for member in found.values()] == [5, 3]


def test_all_that_is_wrong_with_the_folders_is_said(folders, tmp_path):
    with pytest.raises(InputError, match="several adapters are called a; name them apart"):
        ensembles.load([f"a={folders}/lora", f"a={folders}/dora"], CONFIG)
    with pytest.raises(InputError) as refusal:
        ensembles.load([f"{tmp_path}/none", f"{folders}/lora", f"x={tmp_path}", "y="], CONFIG)
    assert f"there is no folder {tmp_path}/none" in str(refusal.value)
    assert f"{tmp_path} has no adapter_config.json" in str(refusal.value)
    assert "there is no folder y=" in str(refusal.value)


@pytest.mark.parametrize(
    ("weights", "words"),
    [([1.0], "1 weights for 2 adapters"), ([1.0, -1.0], "at least 0"), ([0.0, 0.0], "not all 0"),
     ([1.0, float("nan")], "at least 0")],
)  # fmt: skip
def test_weights_that_are_no_shares_are_refused(base, weights, words):
    with pytest.raises(InputError, match=words):
        ensembles.average(ensembles.inference_form(base, members(base, "loras")), weights)
