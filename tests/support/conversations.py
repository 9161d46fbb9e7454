"""What is said to a model, and what the library answers to it."""

from bidora_jax.data.prompts import prompt_ids
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.generation import answers, conversation, decoding
from bidora_jax.models.formats import hf, hf_config


def turn(role, text):
    """A turn in ChatML, as the tiny model's template writes it."""
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def answered(folder, prompts, member=None, combine=None, **how):
    """Answers of the library to texts."""
    config, tokenizer = hf_config.read_config(folder), load_tokenizer(folder)
    model = decoding.assemble(config, hf.load_base(folder, config))
    if member is not None:
        model = decoding.with_adapter(model, *member, combine=combine)
    ids = [prompt_ids({"prompt": prompt}, tokenizer) for prompt in prompts]
    ends = conversation.ends(folder, tokenizer)
    pieces = answers.complete(model, ids, max_new_tokens=7, ends=ends, **how)
    return [tokenizer.decode(piece.tokens, skip_special_tokens=True) for piece in pieces]
