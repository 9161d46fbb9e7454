"""Plain LoRAs for inference engines: exact where they can be, and elsewhere the nearest, with the error said truly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from peft_oracle import DEPRECATED
from random_adapters import random_adapter
from runs import trained_run
from safetensors.numpy import load_file

from bidora_jax import export
from bidora_jax.errors import InputError, command
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, lora_approximation, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import hf, hf_config, parity, peft

CONFIG = tiny.CONFIG
UNEVEN = AdapterConfig(
    "lora", rank=4, alpha=6.0, rslora=True, rank_pattern=(("q_proj", 2), ("layers.1.mlp.down_proj", 7)),
    alpha_pattern=((r"1\.self_attn\.\w_proj", 3.0),), target_modules=("q_proj", "down_proj"),
    exclude_modules=("layers.0.self_attn.q_proj",),
)  # fmt: skip
DORA = AdapterConfig(
    "dora", rank=3, alpha=2.5, target_modules=("q_proj", "up_proj"), rank_pattern=(("1.mlp.up_proj", 0),)
)


def trained(settings, base=None):
    """(adapter, prepared base, direction, magnitude), random."""
    base = tiny.random_base(CONFIG) if base is None else base
    adapter, *trees = random_adapter(settings, CONFIG, base)
    return adapter, initial.prepare_base(base, adapter), *trees


def changes(adapter, base, direction, magnitude):
    """W' − W0 of every module by name, in float64."""
    after = merging.merge(adapter, base, direction, magnitude, "float32")
    return {
        (site.path, layer): np.asarray(adapters.get(after["layers"], site.path)["weight"][layer], np.float64)
        - np.asarray(adapters.get(base["layers"], site.path)["weight"][layer], np.float64)
        for site in adapter.sites
        for layer in range(CONFIG.num_layers)
    }


def products(found):
    """B·A of every module of a plain LoRA."""
    return {
        (site.path, layer): np.asarray(leaf["B"][layer], np.float64) @ np.asarray(leaf["A"][layer], np.float64)
        for site in found.adapter.sites
        for leaf in [adapters.get(found.direction["layers"], site.path)]
        for layer in range(CONFIG.num_layers)
    }


# Exact


@pytest.mark.parametrize(("init", "asked", "rank"), [("kaiming", 0, 7), ("kaiming", 9, 9), ("pissa", 0, 14)])
def test_a_lora_is_folded_exactly(init, asked, rank):
    """Of uneven ranks, scales and layers there is one rank left, and s = 1."""
    one = trained(AdapterConfig(**(vars(UNEVEN) | {"init": init})))
    found = lora_approximation.approximate(one[0], CONFIG, *one[1:], rank=asked)
    assert (found.errors, found.error, found.rank) == ({}, 0.0, rank)
    assert {(site.ranks, site.scales) for site in found.adapter.sites} == {((rank, rank), (1.0, 1.0))}
    wanted, got = changes(*one), products(found)
    assert wanted.keys() == got.keys()
    for name, change in wanted.items():
        np.testing.assert_allclose(got[name], change, atol=1e-5)
    assert np.abs(wanted["mlp.down_proj", 1]).max() > 0.1
    assert not got["self_attn.q_proj", 0].any()


@pytest.mark.torch
@pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
def test_peft_reads_it_as_the_plainest_lora(tmp_path):
    """rank and alpha alone decide, and no layer is missing: this is all that engines look at."""
    import oracle
    import peft as oracle_peft

    oracle.qwen3().save_pretrained(tmp_path / "base")
    config = hf_config.read_config(tmp_path / "base")
    base = hf.load_base(tmp_path / "base", config)
    adapter, *trees = random_adapter(UNEVEN, config, base)
    base = initial.prepare_base(base, adapter)
    found = lora_approximation.approximate(adapter, config, base, *trees)
    peft.save_adapter(tmp_path / "a", config, found.adapter, found.settings, found.direction, {}, base_model_name=None)
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (7, 7)
    assert not any(settings[key] for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
                                             "layers_to_transform", "exclude_modules", "lora_dropout"))  # fmt: skip
    assert settings["target_modules"] == ["down_proj", "q_proj"]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {shape for name, t in tensors.items() for shape in t.shape if "lora_" in name} >= {7}
    assert len(tensors) == 2 * 2 * config.num_layers
    assert all(7 in t.shape for t in tensors.values())
    ids = oracle.tokens()
    adapted = oracle_peft.PeftModel.from_pretrained(oracle.qwen3(), tmp_path / "a").eval()
    wanted = decoder.logits(config, adapter, base, *trees, jnp.asarray(ids.numpy()))
    np.testing.assert_allclose(oracle.logits(adapted, ids), wanted, atol=1e-4)


# The nearest


@pytest.fixture(scope="module")
def dora():
    return trained(DORA)


@pytest.mark.parametrize("settings", [DORA, UNEVEN])
def test_a_rank_that_is_too_small_leaves_the_tail_of_the_singular_values(settings):
    one = trained(settings)
    found = lora_approximation.approximate(one[0], CONFIG, *one[1:], rank=2)
    assert found.rank == 2
    tails, wholes = [], []
    for (path, layer), change in changes(*one).items():
        u, s, vt = np.linalg.svd(change, full_matrices=False)
        tails, wholes = [*tails, np.sum(s[2:] ** 2)], [*wholes, np.sum(s**2)]
        np.testing.assert_allclose(products(found)[path, layer], (u[:, :2] * s[:2]) @ vt[:2], atol=1e-4)
        if wholes[-1]:
            said = found.errors[f"model.layers.{layer}.{path}"]
            assert said == pytest.approx(np.sqrt(tails[-1] / wholes[-1]), rel=1e-4, abs=1e-6)
    assert len(found.errors) == np.count_nonzero(wholes) == 3
    assert found.error == pytest.approx(np.sqrt(sum(tails) / sum(wholes)), rel=1e-4)


def test_the_rank_that_is_chosen_is_the_first_within_the_limit(dora):
    """The smaller sides are 26: 8 and 16 lose something, 32 nothing."""
    each = {rank: lora_approximation.approximate(dora[0], CONFIG, *dora[1:], rank=rank).error for rank in (8, 16, 32)}
    assert each[8] > each[16] > 100 * each[32]
    assert each[32] < 1e-5
    for allowed, rank in ((each[8] * 1.001, 8), (each[8] * 0.999, 16), (each[16] * 0.999, 32)):
        found = lora_approximation.approximate(dora[0], CONFIG, *dora[1:], max_error=allowed)
        assert (found.rank, found.error) == (rank, pytest.approx(each[rank], abs=1e-6))
    with pytest.raises(InputError, match=r"(?s)rank 32 or less .* --max-error 0 of.*rank 16 loses \d+\.\d%.*merged"):
        lora_approximation.approximate(dora[0], CONFIG, *dora[1:], max_error=0.0)


def test_a_judge_chooses_the_first_rank_that_loses_little_enough_by_bisection(dora, capsys):
    """8, 16 and 32 are tried; what is lost falls with the rank, and is measured of the LoRA that would be written."""
    seen = []

    def judge(adapter, direction):
        seen.append(direction["layers"]["mlp"]["up_proj"]["A"].shape[1])
        assert {site.rank for site in adapter.sites} == {seen[-1]}
        return {8: 0.3, 16: 0.04, 32: 0.0}[seen[-1]]

    for allowed, rank, asked in ((0.5, 8, [16, 8]), (0.1, 16, [16, 8]), (0.01, 32, [16, 32])):
        seen.clear()
        found = lora_approximation.approximate(dora[0], CONFIG, *dora[1:], max_error=allowed, judge=judge)
        assert (found.rank, sorted(seen)) == (rank, sorted(asked))
    assert "rank 16: 4.0% of the gain lost, " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"(?s)within --max-error 0.1 of what training gained.*rank 32 loses 20.0%"):
        lora_approximation.approximate(dora[0], CONFIG, *dora[1:], judge=lambda *_: 0.2)


def test_an_adapter_that_changed_nothing_stays_nothing():
    adapter = adapters.resolve(DORA, CONFIG)
    base = initial.prepare_base(tiny.random_base(CONFIG), adapter)
    found = lora_approximation.approximate(
        adapter, CONFIG, base, *initial.init(adapter, base, jax.random.key(0)), rank=8
    )
    # m is the root of a sum and the norm the root of another: W' − W0 is rounding, or nothing.
    assert max(np.abs(product).max() for product in products(found).values()) < 1e-6


def test_large_matrices_are_decomposed_nearly_as_well(monkeypatch):
    random = np.random.default_rng(3)
    u, v = (np.linalg.qr(random.normal(size=(side, 47)))[0] for side in (61, 53))
    matrix = jnp.asarray((u * 0.97 ** np.arange(47)) @ v.T, jnp.float32)

    def left(pair):
        return float(jnp.linalg.norm(matrix - pair.B @ pair.A))

    best = lora_approximation._decomposed(matrix, 5)
    monkeypatch.setattr(lora_approximation, "EXACT_SIDE", 20)
    found = lora_approximation._decomposed(matrix, 5)
    assert (found.A.shape, found.B.shape) == ((5, 53), (61, 5))
    assert left(best) < left(found) < 1.01 * left(best)  # slowly falling singular values are its worst case


def test_modules_trained_whole_are_refused():
    one = trained(AdapterConfig("lora", rank=3, target_modules=("q_proj",), modules_to_save=("lm_head",)))
    with pytest.raises(InputError, match=r"trained whole \(lm_head\).*--format merged"):
        lora_approximation.approximate(one[0], CONFIG, *one[1:])


# The command


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    """A run folder as training leaves it, with a random DoRA adapter over an int8 base."""
    return trained_run(tmp_path_factory.mktemp("plain") / "run", model_folder, DORA, "--model.quantization", "int8")


def test_the_command_writes_it_and_says_what_it_lost(run, tmp_path, capfd):
    command(export.main, ["--run", str(run), "--format", "lora", "--rank", "16", "--output", str(tmp_path / "a")])
    out = capfd.readouterr().out
    assert "rank 16: relative Frobenius error of W' − W0 " in out
    assert "over 3 modules, the worst model.layers." in out
    assert "largest logit difference to the trained model " in out
    assert "plain LoRA of rank 16 read back: largest logit difference to the plain LoRA in memory 0.00e+00" in out
    adapter, *_ = peft.load_adapter(tmp_path / "a", CONFIG)
    assert {(site.path, site.ranks) for site in adapter.sites} == {
        ("self_attn.q_proj", (16, 16)), ("mlp.up_proj", (16, 16))
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_what_is_written_wrong_is_removed(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", {jnp.dtype(jnp.float32): -1.0})
    with pytest.raises(SystemExit) as stopped:
        command(export.main, ["--run", str(run), "--format", "lora", "--rank", "16", "--output", str(tmp_path / "a")])
    assert stopped.value.code == 1
    assert "is not the plain LoRA in memory" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--format", "lora", "--max-error", "0"], "--max-error 0 of W' − W0"),
     (["--format", "lora", "--rank", "-1"], "--rank must be at least 1, found -1"),
     (["--format", "lora", "--max-error", "1"], "--max-error must be at least 0 and below 1, found 1.0"),
     (["--format", "lora", "--rank", "8", "--max-error", "0.2"], "nothing is chosen"),
     (["--format", "lora", "--dtype", "bfloat16"], "--dtype is for --format merged"),
     (["--format", "lora", "--merge-base", "original"], "--merge-base is for --format merged"),
     (["--rank", "8"], "--rank and --max-error are for --run with --format lora")],
)  # fmt: skip
def test_bad_calls_are_refused_with_one_message(run, tmp_path, capfd, flags, said):
    with pytest.raises(SystemExit) as stopped:
        command(export.main, ["--run", str(run), "--output", str(tmp_path / "a"), *flags])
    err = capfd.readouterr().err
    assert (stopped.value.code, err.count("error: ")) == (2, 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []
