"""Sample generations: which prompts are taken, and that they are the answers of the merged model."""

import json
from dataclasses import replace

import jax
import pytest
import tiny
from random_adapters import prepared

from bidora_jax.data import prompts
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError
from bidora_jax.generation import answers, decoding
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.training.settings import SamplesConfig
from bidora_jax.training.watchers import samples

ON = SamplesConfig(every=2, count=2, max_new_tokens=7)
ASKING = [{"instruction": f"do {n}", "output": f"v{n};"} for n in range(3)]
TEXTS = [{"text": "abc"}]


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return load_tokenizer(model_folder)


def test_prompts_are_those_of_the_first_split_that_has_any(tokenizer):
    found = samples.prompts(ON, ([], TEXTS, ASKING), tokenizer, 256)
    assert [(one.text, one.expected) for one in found] == [("do 0", "v0;"), ("do 1", "v1;")]
    assert found[0].tokens == prompts.prompt_ids(ASKING[0], tokenizer)
    assert samples.prompts(replace(ON, every=0), ([], [], TEXTS), tokenizer, 256) == []


def test_own_prompts_are_instructions_where_the_records_have_some(tokenizer):
    own = replace(ON, prompts=("do it",))
    asked = samples.prompts(own, ([], [], ASKING), tokenizer, 256)[0]
    begun = samples.prompts(own, ([], [], TEXTS), tokenizer, 256)[0]
    assert asked.tokens == prompts.prompt_ids({"instruction": "do it"}, tokenizer)
    assert begun.tokens == prompts.prompt_ids({"prompt": "do it"}, tokenizer) != asked.tokens
    assert asked.expected is begun.expected is None


def test_what_cannot_be_answered_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"no record has a prompt to answer: give some with samples\.prompts"):
        samples.prompts(ON, ([], [], TEXTS), tokenizer, 256)
    with pytest.raises(InputError, match="do not fit the model's context of 20"):
        samples.prompts(ON, ([], [], ASKING), tokenizer, 20)


def test_answers_are_those_of_the_merged_model_and_are_written_down(tokenizer, tmp_path):
    settings = AdapterConfig("bidora", rank=3, target_modules=("q_proj", "down_proj"))
    adapter, base, direction, magnitude = prepared(settings, tiny.random_base())
    asked = samples.prompts(ON, ([], [], ASKING), tokenizer, 256)
    answer = samples.answerer(ON, tiny.CONFIG, adapter, base, tokenizer, asked, seed=0)
    watcher = samples.Samples(tmp_path, 2, asked, answer)
    said = watcher.look("search", 4, direction, magnitude)
    merged = decoding.assemble(tiny.CONFIG, merging.merge(adapter, base, direction, magnitude))
    pieces = answers.complete(merged, [one.tokens for one in asked], max_new_tokens=7, ends=[tokenizer.eos_token_id])
    texts = tokenizer.batch_decode([piece.tokens for piece in pieces], skip_special_tokens=True)
    (line,) = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    assert [one["answer"] for one in line["samples"]] == texts
    assert (line["phase"], line["step"], line["samples"][1]["expected"]) == ("search", 4, "v1;")
    assert said.startswith("search 4  sample: ")
    _, fresh = initial.init(adapter, base, jax.random.key(0))
    assert answer(jax.tree.map(lambda leaf: 0 * leaf, direction), fresh) != texts
    watcher.truncate("search", 4)
    assert (tmp_path / "samples.jsonl").read_text() == ""
