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


TESTED = {
    "exact": Case(2, 2, "bidora", "nf4 nested", "dots", 1),
    "accumulated": Case(1, 4, "lora", "int8", "layer", 3),
}
CASES = TESTED | {  # by hand: compiling takes a minute
    "exact, dense": Case(1, 4, "bidora", "none", "dots", 1),
    "exact, layer": Case(2, 2, "bidora", "nf4 nested", "layer", 1),
    "exact, accumulated": Case(2, 2, "bidora", "int8", "dots", 3),
    "dora": Case(1, 4, "dora", "nf4", "dots", 3),
    "lora": Case(4, 1, "lora", "int8", "none", 1),
}


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
    import jax.numpy as jnp
    import numpy as np
    import optax
    from forms import quantised
    from tiny import CONFIG, random_base

    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.adapters.settings import AdapterConfig
    from bidora_jax.models.compute import Compute
    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.models.spread import AXES, Spread
    from bidora_jax.tasks import evaluation
    from bidora_jax.tasks.language_modeling import NEXT_TOKEN
    from bidora_jax.training import bilevel, objective, optim, state, step
    from bidora_jax.training.settings import OptimizerConfig

    # Rows of every matrix can be cut in four. Blocks of NF4 run over the cuts, and those of some matrices can't be cut in four.
    config = replace(CONFIG, hidden_size=28, intermediate_size=44)
    settings = AdapterConfig(method=case.method, rank=3, target_modules=("q_proj",))
    adapter, random = adapters.resolve(settings, config), np.random.default_rng(3)
    base = random_base(config, jnp.float64)
    base = initial.prepare_base(base if case.form == "none" else quantised(base, case.form), adapter)
    trained = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.05 * random.normal(size=leaf.shape),
        initial.init(adapter, base, jax.random.key(0)),
    )
    inner = OptimizerConfig("adamw", 1e-2, "constant", warmup=0.0, weight_decay=0.1, clip=0.1)
    inner_tx, outer_tx = optim.transformation(inner, 10), optax.sgd(1.0)
    compute = Compute(remat=case.remat, attention_chunk=16, loss_chunk=8)

    def batch(seed):
        random = np.random.default_rng(seed)
        tokens = random.integers(config.vocab_size, size=(case.micro, DEVICES, 11), dtype=np.int32)
        mask = (random.random(tokens.shape) < 0.6).astype(np.float64)
        mask[:, 1] = 0  # a device with no token to train
        return {"tokens": tokens, "loss_mask": mask}

    def problem(across):
        if case.method == "bidora":
            lower = across(objective.inner_two_pass(config, adapter, compute, compute))
            upper = across(objective.outer_loss(config, adapter, compute))
            how = {"inner_loss": lower, "outer_loss": upper, "inner_tx": inner_tx, "outer_tx": outer_tx}
            start = state.init_state(*trained, inner_tx, outer_tx, jax.random.key(1))
            return partial(bilevel.bilevel_step, **how), start, [batch(1), batch(2)]
        level = across(objective.inner_loss(config, adapter, compute))
        loss = lambda params, base, batch, key: level(*params, base, batch, key)  # noqa: E731
        start = state.init_train_state(trained, inner_tx, jax.random.key(1))
        return partial(step.train_step, loss=loss, tx=inner_tx), start, [batch(1)]

    one, start, batches = problem(lambda loss: loss)
    wanted = jax.jit(one)(start, base, *batches)
    mesh = jax.make_mesh((case.replica, case.shard), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = Spread(mesh, base)
    many, start, batches = problem(lambda loss: spread.across(loss, NEXT_TOKEN.weight))
    program = spread.compiled_by(many, base, len(batches)).lower(start, base, *batches).compile()
    found = program(spread.copies(start), spread.place(base), *batches)

    def changes(out):
        moved, metrics = out
        after = moved.params if case.method != "bidora" else (moved.direction, moved.magnitude)
        return jax.tree.map(lambda a, b: np.asarray(a) - b, after, trained), metrics

    def off(a, b):
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / (np.max(np.abs(np.asarray(a))) + 1e-30))

    worst = max(jax.tree.leaves(jax.tree.map(off, changes(wanted), changes(found))))
    scores = [
        evaluation.evaluator(config, adapter, ModelConfig(), spread=over)(held, *some, batches)
        for over, held, some in ((None, base, trained), (spread, spread.place(base), spread.copies(trained)))
    ]
    return {"off": worst, "scores": scores, "sent": sent(program.as_text())}


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
