"""Every kind of adapter to PEFT and back: the largest difference of a logit, both ways, on random tiny models.

    python benchmarks/formats/roundtrip.py [--families qwen3 llama qwen2] [--save FILE.json]     one family takes minutes
    python benchmarks/formats/roundtrip.py --table FILE.json …                                   one table of saved results

    ours to PEFT     we write an adapter with random factors; PEFT loads it onto the original model
    PEFT to ours     PEFT initialises an adapter, adds noise to all trained tensors and writes it; we load it

The grid is method × init × rank_pattern × rslora × modules_to_save. A BiDoRA file is a DoRA file: PEFT knows only DoRA. With an
initialisation that changes the base (pissa, olora) PEFT converts its file to fit the original model. That conversion refuses
rsLoRA with patterns, and it drops DoRA's magnitude and modules_to_save. In those cells, marked *, we load the file onto the base
that PEFT changed, saved as another folder. Goal: 1e-4 in every cell.
"""

import argparse
import itertools
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling is all of the time

GOAL = 1e-4
FAMILIES = {
    "qwen3": {"head_dim": 14, "tie_word_embeddings": False},
    "llama": {"hidden_size": 48, "head_dim": 14, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True, "hidden_size": 36},
}
SIZES = {
    "vocab_size": 101, "hidden_size": 46, "intermediate_size": 59, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 211,
}  # fmt: skip
METHODS, INITS = ("lora", "dora", "bidora"), ("kaiming", "gaussian", "pissa", "olora")
PATTERN = (("q_proj", 2), ("layers.1.mlp.down_proj", 7))
SAVED = ("lm_head", "embed_tokens")
COLUMNS = tuple(itertools.product((False, True), (False, True), (False, True)))  # rank_pattern, rslora, modules_to_save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=[*FAMILIES], choices=[*FAMILIES])
    parser.add_argument("--save", type=Path)
    parser.add_argument("--table", nargs="+", type=Path, default=[])
    options = parser.parse_args()
    if options.table:
        found = [cell for file in options.table for cell in json.loads(file.read_text())]
    else:
        found = [cell for family in options.families for cell in cells(family)]
        versions()
    if options.save:
        options.save.write_text(json.dumps(found, indent=1))
    for way in ("ours to PEFT", "PEFT to ours"):
        print(f"\n{way}\n\n{table(found, way)}")
    numbers = [cell[way] for cell in found for way in ("ours to PEFT", "PEFT to ours")]
    print(f"\n{len(numbers)} files, the largest difference {max(numbers):.1e}: "
          f"{'within' if max(numbers) <= GOAL else 'MORE THAN'} {GOAL:.0e}")  # fmt: skip


def cells(family: str) -> list[dict[str, Any]]:
    """All of the grid on one model."""
    import torch
    import transformers

    from bidora_jax.models.adapters.settings import AdapterConfig
    from bidora_jax.models.formats import hf, hf_config

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = transformers.AutoConfig.for_model(family, **(SIZES | FAMILIES[family]), rope_parameters=rope)
    original = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    noise(original.named_parameters(), 0.2)
    ids = torch.randint(SIZES["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(0))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(f"{folder}/base")
        ours = hf_config.read_config(f"{folder}/base")
        base = hf.load_base(f"{folder}/base", ours)
        for method, init, (pattern, rslora, saved) in itertools.product(METHODS, INITS, COLUMNS):
            settings = AdapterConfig(
                method, rank=4, alpha=6.0, init=init, rslora=rslora, rank_pattern=PATTERN if pattern else (),
                modules_to_save=SAVED if saved else (),
            )  # fmt: skip
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                cell = {"family": family, "method": method, "init": init, "column": [pattern, rslora, saved]}
                cell["ours to PEFT"] = to_peft(settings, ours, base, original, ids, scratch)
                moved = init in ("pissa", "olora")
                cell["on PEFT's model"] = moved and not convertible(settings)
                cell["PEFT to ours"] = from_peft(settings, ours, base, original, ids, scratch)
            found.append(cell)
        print(f"{family}: {len(found)} cells", flush=True)
    return found


def noise(parameters, spread: float) -> None:
    """Adds noise to all parameters, so that one that was not carried over must show."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def to_peft(settings, config, base, original, ids, scratch: str) -> float:
    """Written here, loaded by PEFT onto a copy of the original model."""
    import copy

    import jax
    import peft as oracle

    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.adapters.conversion import converted
    from bidora_jax.models.formats import peft

    adapter = adapters.resolve(settings, config)
    prepared = initial.prepare_base(base, adapter)
    direction, magnitude = random_trees(adapter, *initial.init(adapter, prepared, jax.random.key(0)))
    expected = our_logits(config, adapter, prepared, direction, magnitude, ids)
    written, wide, factors = converted(adapter, settings, prepared, direction)
    peft.save_adapter(f"{scratch}/ours", config, written, wide, factors, magnitude, base_model_name=None)
    loaded = oracle.PeftModel.from_pretrained(copy.deepcopy(original), f"{scratch}/ours").eval()
    return float(abs(their_logits(loaded, ids) - expected).max())


def from_peft(settings, config, base, original, ids, scratch: str) -> float:
    """Written by PEFT, loaded here: onto the original model, or onto PEFT's own where `convertible` says no."""
    import copy

    import peft as oracle

    from bidora_jax.models.adapters import initial
    from bidora_jax.models.formats import hf, peft

    moved = settings.init in ("pissa", "olora")
    wanted = oracle.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=settings.rslora, use_dora=settings.method != "lora",
        rank_pattern=dict(settings.rank_pattern), target_modules=list(settings.target_modules), task_type="CAUSAL_LM",
        modules_to_save=list(settings.modules_to_save) or None,
        init_lora_weights=True if settings.init == "kaiming" else settings.init,
    )  # fmt: skip
    adapted, how = oracle.get_peft_model(copy.deepcopy(original), wanted).eval(), {}
    adapted.peft_config["default"].init_lora_weights = True  # as PEFT's guide to the conversion has it
    if moved and convertible(settings):
        adapted.save_pretrained(f"{scratch}/start")
        how = {"path_initial_model_for_weight_conversion": f"{scratch}/start"}
    elif moved:
        copy.deepcopy(adapted).unload().save_pretrained(f"{scratch}/left")
        base = hf.load_base(f"{scratch}/left", config)
    noise(((name, p) for name, p in adapted.named_parameters() if p.requires_grad), 0.1)
    adapted.save_pretrained(f"{scratch}/theirs", **how)
    adapter, *trees = peft.load_adapter(f"{scratch}/theirs", config)
    found = our_logits(config, adapter, initial.prepare_base(base, adapter), *trees, ids)
    return float(abs(their_logits(adapted, ids) - found).max())


def convertible(settings) -> bool:
    """Whether PEFT's conversion of a start away from zero keeps all of such an adapter."""
    patterns_and_root = settings.rslora and settings.rank_pattern
    return settings.method == "lora" and not settings.modules_to_save and not patterns_and_root


def random_trees(adapter, direction, magnitude):
    """The two trees with noise on all that is trained, and none on what only fills the stacks up."""
    import jax
    import numpy as np

    random = np.random.default_rng(1)

    def leaf(path, stack):
        top, *names, kind = (key.key for key in path)
        used = np.ones(1)
        if top == "layers":
            ranks = np.array(next(site.ranks for site in adapter.sites if site.path == ".".join(names)))
            used = np.arange(max(ranks)) < ranks[:, None]
            used = {"A": used[..., None], "B": used[:, None], "m": ranks[:, None] > 0}[kind]
        return stack + (used * 0.1 * random.normal(size=stack.shape)).astype(np.float32)

    return tuple(jax.tree_util.tree_map_with_path(leaf, tree) for tree in (direction, magnitude))


def our_logits(config, adapter, base, direction, magnitude, ids):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bidora_jax.models import decoder

    logits = jax.jit(decoder.logits, static_argnums=(0, 1))
    return np.asarray(logits(config, adapter, base, direction, magnitude, jnp.asarray(ids.numpy())))


def their_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=ids).logits.float().numpy()


def table(found: list[dict[str, Any]], way: str) -> str:
    """The largest difference over the families: methods and starts down, the other settings across."""
    names = [" + ".join(n for n, on in zip(("rank_pattern", "rsLoRA", "saved"), column, strict=True) if on) or "plain"
             for column in COLUMNS]  # fmt: skip
    lines = [f"| method, init | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
    for method, init in itertools.product(METHODS, INITS):
        row = []
        for column in COLUMNS:
            here = [c for c in found if (c["method"], c["init"], c["column"]) == (method, init, [*column])]
            mark = "*" if way == "PEFT to ours" and here[0]["on PEFT's model"] else ""
            row.append(f"{max(c[way] for c in here):.0e}{mark}")
        lines.append(f"| {method}, {init} | {' | '.join(row)} |")
    return "\n".join(lines)


def versions() -> None:
    import platform

    import jax
    import peft
    import torch
    import transformers

    names = {module.__name__: module.__version__ for module in (jax, peft, torch, transformers)}
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {found}" for name, found in names.items()))


if __name__ == "__main__":
    main()
