"""llama.cpp as the package xllamacpp has it: answers from a GGUF file and cuts texts into tokens."""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Engine:
    """One loaded file."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text, with those around it if `special`; special tokens in it are found in both cases."""
        return self._post("/tokenize", {"content": text, "add_special": special, "parse_special": True})["tokens"]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The most probable tokens after a prompt, up to the one that ends the answer, which is the last."""
        return self._completed(prompt, n_predict=count)["tokens"]

    def log_probabilities(self, prompt: Sequence[int], vocabulary: int, printable: int) -> list[float]:
        """ln p of every token after a prompt. The token `printable` is forced to come next: the server tells nothing of half a
        character."""
        asked = {"n_predict": 1, "n_probs": vocabulary, "logit_bias": [[printable, 1000.0]]}
        found = self._completed(prompt, **asked)["completion_probabilities"][0]["top_logprobs"]
        by_token = {one["id"]: one["logprob"] for one in found}
        return [by_token[token] for token in range(vocabulary)]

    def chat(self, messages: list[dict[str, str]], count: int) -> str:
        """The answer to a conversation, written with the file's chat template."""
        asked = {"messages": messages, "max_tokens": count, "temperature": 0}
        return self._post("/v1/chat/completions", asked)["choices"][0]["message"]["content"]

    def _completed(self, prompt: Sequence[int], **asked: Any) -> dict[str, Any]:
        fixed = {"prompt": list(prompt), "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self._post("/completion", fixed | asked)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent) as answer:
            return json.load(answer)


@contextmanager
def engine(file: Path, adapter: Path | None = None) -> Iterator[Engine]:
    """llama.cpp with a file, and an adapter on it; keys and values are kept in float32."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_parallel, asked.warmup = str(file), 1, False
    asked.n_ctx, asked.cpuparams.n_threads, asked.cpuparams_batch.n_threads = 256, 1, 1
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
    if adapter is not None:
        asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(asked)
    try:
        yield Engine(server)
    finally:
        del server
