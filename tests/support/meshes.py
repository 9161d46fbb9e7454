"""Steps on one device and on a mesh of four, compared in a process that has four: python meshes.py NAME … prints JSON.

The devices are virtual: XLA makes four of a CPU, where that is asked for before JAX is imported.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

DEVICES = 4
FLAG = f"--xla_force_host_platform_device_count={DEVICES}"


class Case(NamedTuple):
    replica: int
    shard: int
    method: str
    form: str
    """none, int8, nf4 or nf4 nested"""
    remat: str
    micro: int
    kind: str = "decoder"
    """or packed, whose rows hold two texts; or that of an encoder with labels (support/encoders.py), packed where it ends so."""
    labels: str = "classification"
    dropout: float = 0.0
    hypergradient: str = "exact"
    gram: float = 0.0
    changes: tuple[tuple[str, object], ...] = ()
    """Of the adapter's settings."""
    tensor: int = 1


TESTED = {
    "exact": Case(2, 2, "bidora", "nf4 nested", "dots", 1),
    "accumulated": Case(1, 4, "lora", "int8", "layer", 3, dropout=0.3),
    "encoder": Case(2, 2, "bidora", "int8", "layer", 1, "bert packed", dropout=0.3),
}
BOTH_SIDES = ("target_modules", ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
"""Layers whose rows, and layers whose columns, are cut where devices share products."""
_shared = partial(Case, tensor=2, changes=(BOTH_SIDES,))
SHARED = {
    "tensor, exact": _shared(1, 2, "bidora", "nf4 nested", "dots", 1),
    "tensor, dora": _shared(1, 2, "dora", "int8", "dots", 3, dropout=0.3),
}
CASES = (
    TESTED
    | SHARED
    | {  # by hand: compiling takes a minute
        "tensor, accumulated": _shared(2, 1, "bidora", "int8", "layer", 3, dropout=0.3),
        "tensor, dense": _shared(1, 2, "bidora", "none", "dots", 1),
        "tensor, lora": _shared(1, 2, "lora", "int8", "none", 1),
        "tensor, alone": _shared(2, 1, "dora", "none", "layer", 1),
        "tensor, whole": _shared(
            2, 1, "bidora", "none", "dots", 1, changes=(BOTH_SIDES, ("modules_to_save", ("embed_tokens", "lm_head")))
        ),
        "tensor, start": _shared(1, 2, "bidora", "nf4", "dots", 1, changes=(BOTH_SIDES, ("init", "pissa"))),
        "tensor, reverse": _shared(1, 2, "bidora", "int8", "layer", 1, hypergradient="reverse"),
        "tensor, packed": _shared(1, 2, "dora", "nf4", "dots", 3, "packed", dropout=0.3),
        "exact, dense": Case(1, 4, "bidora", "none", "dots", 1),
        "exact, layer": Case(2, 2, "bidora", "nf4 nested", "layer", 1),
        "exact, accumulated": Case(2, 2, "bidora", "int8", "dots", 3),
        "dora": Case(1, 4, "dora", "nf4", "dots", 3),
        "lora": Case(4, 1, "lora", "int8", "none", 1),
        "penalty": Case(2, 2, "bidora", "nf4", "dots", 1, gram=0.1),
        "penalty, reverse": Case(1, 4, "bidora", "none", "layer", 3, hypergradient="reverse", gram=0.1),
        "penalty, one level": Case(4, 1, "dora", "int8", "dots", 1, gram=0.1),
        "whole": Case(2, 2, "bidora", "int8", "dots", 1, changes=(("modules_to_save", ("embed_tokens", "lm_head")),)),
        "start": Case(2, 2, "bidora", "nf4", "dots", 1, changes=(("init", "pissa"),)),
        "start, one level": Case(1, 4, "lora", "none", "layer", 3, changes=(("init", "olora"),)),
        "reverse": Case(2, 2, "bidora", "int8", "dots", 1, hypergradient="reverse"),
        "reverse, accumulated": Case(1, 4, "bidora", "none", "layer", 3, hypergradient="reverse"),
        "direct": Case(2, 2, "bidora", "nf4", "dots", 1, hypergradient="direct"),
        "finite difference": Case(2, 2, "bidora", "int8", "dots", 1, hypergradient="finite_difference"),
        "packed": Case(2, 2, "bidora", "nf4", "dots", 1, "packed", dropout=0.3),
        "packed, accumulated": Case(1, 4, "dora", "none", "dots", 3, "packed"),
        "encoder, accumulated": Case(1, 4, "bidora", "nf4", "dots", 3, "roberta"),
        "encoder, tags": Case(2, 2, "bidora", "none", "layer", 1, "bert packed", "tokens"),
        "encoder, several labels": Case(1, 4, "dora", "int8", "dots", 3, "bert", "multilabel"),
        "encoder, numbers": Case(4, 1, "lora", "none", "dots", 1, "electra", "regression"),
        "encoder, windows": Case(1, 4, "dora", "none", "layer", 1, "modernbert"),
        "encoder, relative": Case(2, 2, "lora", "none", "dots", 1, "deberta-v3"),
        "encoder, proteins": Case(4, 1, "bidora", "none", "dots", 1, "esm-2 packed"),
    }
)


def environment_of_four() -> dict[str, str]:
    """The environment of a process that has four devices."""
    return os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"}


def compared(*names: str) -> dict[str, dict]:
    """What `compare` finds of each case, from one process."""
    argv = [sys.executable, __file__, *names]
    done = subprocess.run(argv, env=environment_of_four(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: Case) -> dict:
    """How far a step on the mesh is from one device's, relative to the largest number of each array, and what it sends."""
    import jax
    import numpy as np
    import optax

    from bidora_jax.kernels import hypergrad
    from bidora_jax.models.compute import Compute
    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.models.spread import Spread, mesh_over
    from bidora_jax.tasks import class_evaluation, evaluation
    from bidora_jax.training import bilevel, objective, optim, state, step
    from bidora_jax.training.settings import OptimizerConfig

    config, task, adapter, base, trained, batch = (
        _with_labels if case.kind not in ("decoder", "packed") else _decoder
    )(case)
    random = np.random.default_rng(3)
    trained = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.05 * random.normal(size=leaf.shape), trained)
    inner = OptimizerConfig("adamw", 1e-2, "constant", warmup=0.0, weight_decay=0.1, clip=0.1)
    inner_tx, outer_tx = optim.transformation(inner, 10), optax.sgd(1.0)
    on_one = Compute(remat=case.remat, attention_chunk=16, loss_chunk=8)

    def problem(across, compute):
        if case.method == "bidora":
            lower, form = (
                across(objective.inner_two_pass(config, adapter, compute, compute, gram_weight=case.gram, task=task)),
                hypergrad.exact,
            )
            if case.hypergradient != "exact":
                reverse = replace(compute, reverse_differentiable=case.hypergradient == "reverse")
                lower = across(objective.inner_loss(config, adapter, reverse, gram_weight=case.gram, task=task))
                form = getattr(hypergrad, case.hypergradient)
            upper = across(objective.outer_loss(config, adapter, compute, task=task))
            how = {
                "inner_loss": lower,
                "outer_loss": upper,
                "inner_tx": inner_tx,
                "outer_tx": outer_tx,
                "hypergradient": form,
            }
            start = state.init_state(*trained, inner_tx, outer_tx, jax.random.key(1))
            return partial(bilevel.bilevel_step, **how), start, [batch(1), batch(2)]
        level = across(objective.inner_loss(config, adapter, compute, gram_weight=case.gram, task=task))
        loss = lambda params, base, batch, key: level(*params, base, batch, key)  # noqa: E731
        start = state.init_train_state(trained, inner_tx, jax.random.key(1))
        return partial(step.train_step, loss=loss, tx=inner_tx), start, [batch(1)]

    one, start, batches = problem(lambda loss: loss, on_one)
    wanted = jax.jit(one)(start, base, *batches)
    spread = Spread(mesh_over(jax.devices(), case.replica, case.shard, case.tensor), base)
    many, start, batches = problem(lambda loss: spread.across(loss, task.weight), spread.share(on_one))
    program = spread.compiled_by(many, base, len(batches)).lower(start, base, *batches).compile()
    found = program(spread.copies(start), spread.place(base), *batches)

    def changes(out):
        moved, metrics = out
        after = moved.params if case.method != "bidora" else (moved.direction, moved.magnitude)
        return jax.tree.map(lambda a, b: np.asarray(a) - b, after, trained), metrics

    def off(a, b):
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / (np.max(np.abs(np.asarray(a))) + 1e-30))

    worst = max(jax.tree.leaves(jax.tree.map(off, changes(wanted), changes(found))))
    placed = (None, base, trained), (spread, spread.place(base), spread.copies(trained))
    if case.kind in ("decoder", "packed"):
        readers = [evaluation.evaluator(config, adapter, ModelConfig(), spread=over) for over, *_ in placed]
        scores = [read(held, *some, batches) for read, (_, held, some) in zip(readers, placed, strict=True)]
    else:
        readers = [class_evaluation.reader(task, config, adapter, ModelConfig(), over) for over, *_ in placed]
        read = [read(held, *some, batches) for read, (_, held, some) in zip(readers, placed, strict=True)]
        scores = [[one.loss, *np.concatenate([*one.outputs], axis=None).tolist()] for one in read]
    return {"off": worst, "scores": scores, "sent": sent(program.as_text())}


def _decoder(case: Case):
    """(architecture, task, adapter, base, trained, batch of a seed) of a language model."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from forms import quantised
    from tiny import CONFIG, random_base

    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.adapters.settings import AdapterConfig
    from bidora_jax.tasks.language_modeling import NEXT_TOKEN

    # Rows of every matrix can be cut in four. Blocks of NF4 run over the cuts, and those of some matrices can't be cut in four.
    config = replace(CONFIG, hidden_size=28, intermediate_size=44)
    settings = {"method": case.method, "rank": 3, "target_modules": ("q_proj",), "dropout": case.dropout}
    settings = AdapterConfig(**settings | dict(case.changes))
    adapter = adapters.resolve(settings, config)
    base = random_base(config, jnp.float64)
    base = initial.prepare_base(base if case.form == "none" else quantised(base, case.form), adapter)

    def batch(seed):
        random = np.random.default_rng(seed)
        tokens = random.integers(config.vocab_size, size=(case.micro, DEVICES, 11), dtype=np.int32)
        mask = (random.random(tokens.shape) < 0.6).astype(np.float64)
        mask[:, 1] = 0  # a device with no token to train
        segments = np.broadcast_to(np.where(np.arange(11) < 5, 1, 2), tokens.shape).astype(np.int32)
        return {"tokens": tokens, "loss_mask": mask} | ({"segments": segments} if case.kind == "packed" else {})

    return config, NEXT_TOKEN, adapter, base, initial.init(adapter, base, jax.random.key(0)), batch


def _with_labels(case: Case):
    """The same of an encoder with a head."""
    import encoders
    import labelled_problems

    kind, _, packed = case.kind.partition(" ")
    config = encoders.config(kind)
    form = None if case.form == "none" else case.form
    weights = None if case.labels == "regression" else (0.5, 2.0, 1.25)
    task, adapter, base, *trained = labelled_problems.problem(
        case.labels,
        weights=weights,
        config=config,
        form=form,
        method=case.method,
        target_modules=("q_proj",),
        dropout=case.dropout,
    )

    def batch(seed):
        how = {"micro": case.micro, "packed": bool(packed), "rows": DEVICES, "vocabulary": config.vocab_size}
        return labelled_problems.labelled(case.labels, 3, seed, **how)

    return config, task, adapter, base, tuple(trained), batch


def sent(text: str) -> list[tuple[str, bool, list[str]]]:
    """Every collective of a compiled program: its name, whether it stands in a loop, and the arrays that it gives."""
    names, found = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute", []
    for line in text.splitlines():
        if match := re.search(rf"= (.*?) ({names})(?:-start)?\(", line):
            found.append((match[2], "while/body" in line, re.findall(r"\b([a-z]+\d+\[[\d,]*\])", match[1])))
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    print(json.dumps({name: compare(CASES[name]) for name in sys.argv[1:]}))
