"""A tokenizer of one token a byte, whose merges straddle what a careless border would cut."""

import json
from pathlib import Path

from bidora_jax.data.tokenizer import load_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def make_tokenizer(folder: Path, *, chat: bool = True, eos: bool = True):
    """Three special tokens, one token a byte, and the words 'ab' and 'abc'; it pads with its end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<eos>", "<|user|>", "<|bot|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc"]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[("a", "b"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:3])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<eos>", "model_max_length": 7}
    config |= {"eos_token": "<eos>"} if eos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if chat:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return load_tokenizer(folder)
