"""Modelfiles: what Ollama puts around turns is what the chat template writes, or is left to Ollama."""

import pytest

from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.quickstart import MODEL
from bidora_jax.runs import modelfile

CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)


@pytest.fixture
def tokenizer():
    return load_tokenizer(MODEL)


def test_chatml_is_written_as_ollama_writes_it(tokenizer, tmp_path):
    modelfile.write(tmp_path / "m.Modelfile", "m.gguf", tokenizer, [2, 0])
    assert (tmp_path / "m.Modelfile").read_text() == (
        f'FROM ./m.gguf\nTEMPLATE """{CHATML}"""\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
    )


@pytest.mark.parametrize("template", [
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}",
    "",
])  # fmt: skip
def test_a_template_that_does_more_is_left_to_ollama(tokenizer, template, tmp_path):
    tokenizer.chat_template = template or None
    modelfile.write(tmp_path / "m.Modelfile", "base.gguf", tokenizer, [2], adapter="m.gguf")
    assert (tmp_path / "m.Modelfile").read_text() == (
        'FROM ./base.gguf\nADAPTER ./m.gguf\nPARAMETER stop "<|im_end|>"\n'
    )
