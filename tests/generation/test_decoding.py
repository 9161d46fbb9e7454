"""Generated text: transformers' is the oracle for greedy answers and for each filter; the forms of one model agree.

generation/answers.py calls generation/decoding.py, whose attention is kernels/cached_attention.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from forms import as_bits, quantised
from random_adapters import adapted
from tiny import CONFIG, random_base

from bidora_jax.errors import InputError
from bidora_jax.generation import decoding
from bidora_jax.generation.answers import Piece, _padded, bucket, complete, stream
from bidora_jax.kernels import cached_attention
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.models import decoder
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.formats import hf, hf_config

PROMPTS = [[5, 71, 3, 8, 8, 1, 33, 20, 9, 60, 2], [44, 7, 12, 90], [17, 6, 52, 41, 30, 11, 5]]
NEVER = [1_000_000]


def tokens(pieces):
    return [piece.tokens for piece in pieces]


def answers(model, prompts=PROMPTS, **how):
    return tokens(complete(model, prompts, **{"max_new_tokens": 9, "ends": NEVER} | how))


@pytest.fixture(scope="module")
def model():
    return decoding.assemble(CONFIG, random_base())


# Greedy


@pytest.mark.torch
@pytest.mark.parametrize(
    "overrides",
    [{"attention_bias": True, "tie_word_embeddings": True}, {"tie_word_embeddings": False, "head_dim": 8}],
)
def test_greedy_answers_are_those_of_transformers_row_by_row(tmp_path, overrides):
    import oracle
    import torch

    theirs = oracle.qwen3(3, **overrides)
    theirs.save_pretrained(tmp_path)
    config = hf_config.read_config(tmp_path)
    ours = decoding.assemble(config, hf.load_base(tmp_path, config))

    def expected(prompt, **how):
        ids = torch.tensor([prompt])
        how = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | how
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, len(prompt) :].tolist()

    free = [expected(prompt) for prompt in PROMPTS]
    assert answers(ours, max_new_tokens=40) == free
    ends = [free[0][5], free[1][20]]
    stopped = complete(ours, PROMPTS, max_new_tokens=40, ends=ends)
    for prompt, piece in zip(PROMPTS, stopped, strict=True):
        wanted = expected(prompt, eos_token_id=ends)
        assert piece.tokens == [token for token in wanted if token not in ends]
        assert piece.ended == (wanted[-1] in ends)
    assert any(piece.ended for piece in stopped)
    penalised = answers(ours, max_new_tokens=40, sampling=Sampling(repetition_penalty=1.7))
    assert penalised == [expected(prompt, repetition_penalty=1.7) for prompt in PROMPTS]
    assert penalised != free


def test_greedy_is_the_argmax_of_the_logits(model):
    found = answers(model)
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, found, strict=True)]
    padded = jnp.array([text + [0] * (20 - len(text)) for text in texts])
    best = np.asarray(decoder.logits(CONFIG, None, random_base(), {}, {}, padded)).argmax(-1)
    for row, prompt, answer in zip(best, PROMPTS, found, strict=True):
        assert answer == row[len(prompt) - 1 :][:9].tolist()


def test_an_answer_stops_at_an_end_and_does_not_hold_it(model):
    free = answers(model, PROMPTS[:2])
    found = complete(model, PROMPTS[:2], max_new_tokens=9, ends=[free[0][2]])
    first = free[0].index(free[0][2])
    assert found[0] == Piece(free[0][:first], True)
    cut = free[1].index(free[0][2]) if free[0][2] in free[1] else 9
    assert found[1].tokens == free[1][:cut]


def test_the_loop_ends_when_every_row_has(model):
    """Also when rows that only fill the batch, which end before they begin, go on to say something else."""
    free = answers(model)
    request, _ = _request(PROMPTS)
    request = request._replace(ends=jnp.array([free[0][3], free[1][2]], jnp.int32))
    state = decoding.prefill(model, request, jnp.array([False, False, True]), room=32)
    state = decoding.decode(model, request, state, 32)
    assert int(state.made) == 1 + max(
        next(place for place, token in enumerate(row) if token in (free[0][3], free[1][2])) for row in free[:2]
    )


def test_an_answer_is_the_same_alone_in_a_batch_and_in_a_filled_one(model):
    together = answers(model)
    assert [answers(model, [prompt])[0] for prompt in PROMPTS] == together
    assert answers(model, rows=5) == together


def test_a_stream_is_the_answer_in_pieces(model):
    free = answers(model)
    end = free[1][4]
    pieces = list(stream(model, PROMPTS, max_new_tokens=9, ends=[end], chunk=3))
    assert [len(piece[0].tokens) for piece in pieces][:2] == [1, 3]
    joined = [[token for piece in pieces for token in piece[row].tokens] for row in range(3)]
    assert joined == tokens(complete(model, PROMPTS, max_new_tokens=9, ends=[end]))
    assert pieces[-1][1].ended


# The forms of one model


def scanned(model):
    """The same weights, stacked."""
    return model._replace(weights=decoding.Weights(random_base(), None, random_base()["embed_tokens"]["weight"]))


def test_the_loop_over_layers_is_the_scan(model):
    assert model.weights.layers is not None
    assert len(model.weights.layers) == CONFIG.num_layers
    assert answers(scanned(model)) == answers(model)


def test_split_layers_lie_in_the_memory_of_the_stack():
    base = random_base(DecoderConfig(**{**vars(CONFIG), "intermediate_size": 64, "hidden_size": 32}))
    weights = decoding.prepare(base)
    stack = weights.base["layers"]["mlp"]["up_proj"]["weight"].weight
    layers = [layer["mlp"]["up_proj"]["weight"].weight for layer in weights.layers]
    assert stack.shape == (2, 32, 64)
    steps = [layer.unsafe_buffer_pointer() - stack.unsafe_buffer_pointer() for layer in layers]
    assert steps == [0, 32 * 64 * 4]


@pytest.mark.parametrize("held", [False, True])
def test_sixteen_bit_weights_in_every_form(held):
    """One row goes twice; a plain stack and one held as integers are the same weights."""
    base = random_base(dtype=jnp.bfloat16)
    if held:
        base = as_bits(base)
    model = decoding.assemble(CONFIG, base)
    state = decoding.prefill(model, *_request(PROMPTS[:2]), room=32)
    expected = decoder.logits(CONFIG, None, base, {}, {}, jnp.array([PROMPTS[0]]))[0, -1]
    assert int(state.last[0]) == int(expected.argmax())
    assert len(answers(model, PROMPTS[:1])[0]) == 9


def _request(prompts):
    padded = _padded(prompts, len(prompts))
    numbers = jnp.arange(len(prompts), dtype=jnp.int32)
    request = padded._replace(numbers=numbers, ends=jnp.array(NEVER, jnp.int32), sampling=Sampling().as_data())
    return request, jnp.zeros(len(prompts), bool)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("form", ["dense", "int8", "nf4"])
def test_an_adapter_applied_answers_as_its_merged_model(method, form):
    adapter, base, direction, magnitude = adapted(method, target_modules=("q_proj", "down_proj"))
    if form != "dense":
        base = initial.prepare_base(quantised(random_base(), form), adapter)
    merged = merging.dequantise(merging.merge(adapter, base, direction, magnitude))
    found = answers(decoding.assemble(CONFIG, base, adapter, direction, magnitude))
    assert found == answers(decoding.assemble(CONFIG, merged))
    assert found != answers(decoding.assemble(CONFIG, merging.dequantise(base)))


def test_a_row_never_sees_the_gap_behind_its_prompt():
    positions, holds = cached_attention.column_positions(jnp.array([3, 5]), 5, 8)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(holds[0], [1, 1, 1, 0, 0, 1, 1, 1])
    assert holds[1].all()


# Compilations


def test_settings_lengths_and_seeds_compile_nothing_anew(model):
    def sizes():
        return decoding._prefill._cache_size(), decoding._decode._cache_size()

    answers(model, sampling=Sampling(temperature=1.0))
    before = sizes()
    answers(model, sampling=Sampling(temperature=0.3, top_k=7, top_p=0.5, min_p=0.1, repetition_penalty=2), seed=4)
    answers(model, [[3] * 60, [4], [5, 6]], max_new_tokens=61)
    assert sizes() == before
    answers(model, [[3] * 70, [4], [5, 6]])
    assert sizes() == (before[0] + 1, before[1] + 1)


def test_buckets_hold_their_lengths_with_little_to_spare():
    sizes = {bucket(n) for n in range(1, 4097)}
    assert sorted(sizes) == [64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert all(n <= bucket(n) < max(65, (2 if n < 256 else 1.5) * n) for n in range(1, 4097))


# Draws


def test_draws_hang_on_seed_number_and_position_alone(model):
    hot = {"sampling": Sampling(temperature=3.0), "max_new_tokens": 8}
    found = answers(model, seed=7, **hot)
    assert answers(model, seed=7, **hot) == found
    assert answers(model, seed=8, **hot) != found
    assert [answers(model, [PROMPTS[n]], seed=7, numbers=[n], **hot)[0] for n in range(3)] == found
    twins = answers(model, [PROMPTS[0]] * 2, seed=7, **hot)
    assert twins[0] != twins[1]
    assert tokens(list(stream(model, PROMPTS, ends=NEVER, seed=7, chunk=8, **hot))[-1]) == [row[1:] for row in found]


# What does not fit


@pytest.mark.parametrize(
    ("prompts", "words"),
    [([[1] * 250, [1]], ["context of 256", "prompt 1 has 250 tokens"]), ([[1], []], ["prompt 2 is empty"]),
     ([], ["there is no prompt"])],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, prompts, words):
    with pytest.raises(InputError) as refusal:
        answers(model, prompts)
    assert all(word in str(refusal.value) for word in words)
    assert "prompt 2 has" not in str(refusal.value)
