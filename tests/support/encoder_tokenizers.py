"""Tokenizers of encoders, of a few tokens each: BERT's word pieces, RoBERTa's bytes, ESM's residues."""

import json
from pathlib import Path

from bidora_jax.data.tokenizer import Tokenizer, load_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("good", "bad", "film", "a", "the", "very", "is", "john", "lives", "in", "york", "new")
RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"


def bert(folder: Path) -> Tokenizer:
    """[PAD] [UNK] [CLS] [SEP] [MASK], whole words, letters at the beginning of a word and within one."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
        ".",
        "1",
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)))
    return _loaded(folder, "BertTokenizer", model_max_length=512)


def roberta(folder: Path) -> Tokenizer:
    """<s> <pad> </s> <unk> <mask>, and single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return _loaded(folder, "RobertaTokenizer", model_max_length=512)


def esm(folder: Path) -> Tokenizer:
    """<cls> <pad> <eos> <unk>, the amino acids, and <mask>."""
    pieces = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, ".", "-", "<null_1>", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return _loaded(folder, "EsmTokenizer", model_max_length=1024)


def _loaded(folder: Path, kind: str, **settings: object) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **settings}))
    return load_tokenizer(folder, ends=False)
