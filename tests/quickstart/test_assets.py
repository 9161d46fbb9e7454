"""The quickstart's files: small enough, made by their scripts, and fit to train on.

quickstart/make_data.py is run again; quickstart/make_model.py, which trains for long, made the model that is looked at here
from the texts of quickstart/corpus.py and quickstart/scenes.py.
"""

import json
import random
import struct

import pytest
from tokenizers import Tokenizer

from bidora_jax.quickstart import DATA, MODEL, corpus, make_data

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def splits():
    return {
        split: [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def question(record):
    return record["instruction"] + ("\n\n" + record["input"] if "input" in record else "")


def tensor_shapes():
    """Shapes and dtypes from the header alone: 8 bytes of length, then JSON."""
    with (MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def test_all_files_together_stay_under_ten_megabytes():
    folder = MODEL.parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 10_000_000


def test_the_model_has_at_most_four_million_bf16_parameters_and_tied_embeddings():
    tensors = tensor_shapes()
    assert {dtype for dtype, _ in tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in tensors
    total = 0
    for _, shape in tensors.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    assert 500_000 < total <= 4_000_000


def test_the_configuration_is_a_qwen3_whose_heads_do_not_make_up_its_width():
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["num_attention_heads"] * config["head_dim"] != config["hidden_size"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert tensor_shapes()["model.embed_tokens.weight"][1] == [config["vocab_size"], config["hidden_size"]]


def test_make_data_writes_the_same_bytes_again(tmp_path):
    make_data.write(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (DATA / f"{split}.jsonl").read_bytes()


def test_another_seed_gives_other_records(splits):
    assert make_data.records(seed=5)["train"] != splits["train"]


def test_no_record_stands_in_two_splits(splits):
    for key in ("output", "question"):
        seen = [question(row) if key == "question" else row["output"] for split in SPLITS for row in splits[split]]
        assert len(seen) == len(set(seen))
    assert {split: len(rows) for split, rows in splits.items()} == make_data.SPLITS


def test_pretraining_never_shows_the_house_style():
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(corpus.document(rng))
        assert "$fn=64" not in text
        assert "h=200" not in text


def test_every_number_of_the_output_but_the_house_constants_is_in_the_question(splits):
    for row in (row for rows in splits.values() for row in rows):
        output = row["output"].replace("$fn=64", "").replace("h=200", "").replace("d1=", "").replace("d2=", "")
        numbers = "".join(c if c.isdigit() else " " for c in output).split()
        given = "".join(c if c.isdigit() else " " for c in question(row)).split()
        assert set(numbers) - {"0"} <= set(given)


def test_every_output_has_matching_brackets_and_calls_its_module(splits):
    pairs = {")": "(", "]": "[", "}": "{"}
    for row in (row for rows in splits.values() for row in rows):
        stack = []
        for character in row["output"]:
            if character in pairs.values():
                stack.append(character)
            elif character in pairs:
                assert stack.pop() == pairs[character]
        assert not stack
        name = row["output"].split("(")[0].removeprefix("module ")
        assert row["output"].endswith(f"\n{name}();")


def test_the_tokenizer_gives_every_record_back(splits, tokenizer):
    assert tokenizer.get_vocab_size() <= 4096
    for row in (row for rows in splits.values() for row in rows):
        for text in (question(row), row["output"]):
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_tokenizer_writes_any_text_and_splits_numbers_into_digits(tokenizer):
    for text in ("größe 123,45 → ☃\n\ttab", "  leading", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("[2048,-317]").tokens == ["[", "2", "0", "4", "8", ",-", "3", "1", "7", "]"]


def test_every_record_fits_the_length_of_the_quickstart(splits, tokenizer):
    longest = max(len(tokenizer.encode(question(row) + row["output"])) for rows in splits.values() for row in rows)
    assert longest + 10 <= 128  # with the ten tokens of the markup


def test_the_chat_template_renders_the_markup_the_model_was_pretrained_on():
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    user, assistant = "Make it red.", 'color("red") sphere(d=5);'
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    given, answer = corpus.chat((user, assistant))
    assert prompt == given
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(given + answer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.torch
def test_transformers_loads_the_model_and_finds_the_code_likely():
    import torch
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    text = '// a red box of width 31, depth 42 and height 53, called lid\ncolor("red") cube([31,42,53]);<|endoftext|>'
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss < 1.5  # an untrained model of 704 tokens is near log 704 = 6.6
