"""Folders of small random decoders of every family that a GGUF file is written of, with tokenizers of both kinds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hard_texts import PARTS, hard_texts
from tiny import TEMPLATE, random_base

from bidora_jax.models.architectures.architecture import name_table
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.formats import hf_config

SIZES = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "tie_word_embeddings": False,
}  # fmt: skip
CORPUS = (
    "the quick brown fox jumps over the lazy dog; it's 12 o'clock and they'll go home",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))",
    "a b  c   d    e  the the the  then  there",
    *PARTS,
    *(f" {part}" for part in PARTS),
    *hard_texts(count=400)[-150:],
)


def decoder(folder: Path, family: str, vocab_size: int, **overrides: Any) -> DecoderConfig:
    """config.json and float32 weights, to which a tokenizer was or will be added."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = (
        {"model_type": family, "dtype": "float32", "vocab_size": vocab_size, "sliding_window": None} | SIZES | overrides
    )
    (folder / "config.json").write_text(json.dumps(settings))
    config = hf_config.read_decoder(folder)
    base, tensors = random_base(config, seed=3, spread=0.15), {}
    for name, place in name_table(config).items():
        leaf = base
        for key in place.path:
            leaf = leaf[key]
        tensors[name] = np.asarray(leaf if place.layer is None else leaf[place.layer], np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return config


def byte_level(folder: Path, *splits: Any, ignore_merges: bool = False, normalizer: Any = None) -> int:
    """A tokenizer trained on a few lines, with these splits before its bytes; returns how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    own = not splits
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return _saved(folder, tokenizer, {"eos_token": special[2], "pad_token": special[0], "chat_template": TEMPLATE})


def sentencepiece(folder: Path, *, template: str | None = None, pre_tokenizer: Any = None, begin: str = "") -> int:
    """A tokenizer as transformers makes it of SentencePiece's: its merges are all ways to make a token, by the token's score.

    With a normaliser that puts ▁ before a text, or the pre-tokenizer. `begin` is put before a text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

    blanks = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = blanks
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    learned = sorted(trained.get_vocab().items(), key=lambda one: one[1])
    learned = [one for one in learned if "\0" not in one[0] and "0x" not in one[0]]  # a way to <0x0A> from its letters
    letters = [text for text, _ in learned if len(text) == 1]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    longer = [text for text, _ in learned if len(text) > 1 and text not in first]
    pieces = [*first, *longer, *letters]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [(piece[:at], piece[at:]) for piece in longer for at in range(1, len(piece))
              if piece[:at] in vocabulary and piece[at:] in vocabulary]  # fmt: skip
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if pre_tokenizer is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in pieces[:3]])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if begin:
        around = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])])
        tokenizer.post_processor = around
    return _saved(folder, tokenizer, named | ({"chat_template": template} if template else {}))


def _saved(folder: Path, tokenizer: Any, settings: dict[str, Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return tokenizer.get_vocab_size()
