"""runs/finetuned_model.py, runs/call_arguments.py: what a run gives back answers, measures and exports as the commands do.

The runs here are as `train` leaves them, with random adapters.
"""

import json
import math
import shutil

import pytest
from conversations import answered, turn
from histories import lines
from random_adapters import KINDS
from runs import contents, trained_run

import bidora_jax
from bidora_jax import FinetunedModel, InputError, evaluate, export, load
from bidora_jax.errors import command
from bidora_jax.evaluate import EvaluateArguments
from bidora_jax.generation import ensembles
from bidora_jax.models.formats import hf_config
from bidora_jax.models.settings import ModelConfig

PROMPTS = ["repeat 5 x2", "abc", "v1; v2; and so on"]


@pytest.fixture
def run_folder(model_folder, tmp_path):
    return trained_run(tmp_path / "run", model_folder, KINDS["bidora"], "--data.batch-size", "3")


@pytest.fixture
def member(run_folder, model_folder):
    """The adapter of the run."""
    return next(iter(ensembles.load([str(run_folder / "adapter")], hf_config.read_config(model_folder)).values()))


def served(model_folder, member):
    from bidora_jax.models.formats import hf

    config = hf_config.read_config(model_folder)
    return ensembles.for_serving(hf.load_base(model_folder, config), {"a": member}, None, False, ())[1]["a"]


def test_answers_are_those_of_the_library_raw_and_in_the_template(run_folder, model_folder, member):
    ready, run = served(model_folder, member), load(run_folder)
    expected = answered(model_folder, PROMPTS, ready)
    assert run.generate(tuple(PROMPTS), raw=True, max_new_tokens=7, batch_size=2) == expected
    assert run.generate([]) == []
    wrapped = [turn("system", "be") + turn("user", text) + "<|im_start|>assistant\n" for text in PROMPTS]
    said = answered(model_folder, wrapped, ready)
    assert run.generate(PROMPTS, system="be", max_new_tokens=7, batch_size=2) == said != expected
    assert run.generate({"instruction": PROMPTS[0]}, system="be", max_new_tokens=7, batch_size=2) == said[0]
    asked = {"instruction": PROMPTS[0], "system": "be", "output": "an answer that is left out"}
    talk = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": PROMPTS[1]}]}
    assert run.generate([asked, talk, {"prompt": PROMPTS[2]}], max_new_tokens=7, batch_size=2) == [
        *said[:2],
        expected[2],
    ]


def test_a_text_is_asked_as_the_training_asked(run_folder, model_folder, member, data_files, tmp_path):
    text, wrapped = PROMPTS[0], turn("user", PROMPTS[0]) + "<|im_start|>assistant\n"
    raw, asked = answered(model_folder, [text, wrapped], served(model_folder, member))
    assert raw != asked
    (tmp_path / "code.jsonl").write_text('{"code": "v5;"}\n')
    settings = json.loads((run_folder / "config.json").read_text())
    for file, expected in (("", asked), (str(data_files[0]), asked), (str(tmp_path / "code.jsonl"), raw)):
        settings["data"]["train_file"] = file
        (run_folder / "config.json").write_text(json.dumps(settings))
        for run in (load(run_folder), load(model_folder, run_folder / "adapter")):
            assert run.generate(text, max_new_tokens=7) == expected, file
        assert load(run_folder).generate([text], max_new_tokens=7, raw=False) == [asked]


def test_draws_follow_their_settings_and_their_seed(run_folder):
    run = load(run_folder)
    how = {"raw": True, "max_new_tokens": 7, "temperature": 2.0}
    drawn = [run.generate(PROMPTS, **how, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = run.generate(PROMPTS, raw=True, max_new_tokens=7)
    assert run.generate(PROMPTS, **how, top_k=1) == greedy != drawn[0]


def test_the_weights_are_read_once(model_folder, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    run = load(trained_run(tmp_path / "run", model, KINDS["dora"]))
    first = run.generate(PROMPTS[0], max_new_tokens=5), run.evaluate([{"text": "v5;"}])
    assert isinstance(first[0], str)
    (model / "model.safetensors").unlink()
    shutil.rmtree(run.folder / "adapter")
    assert (run.generate(PROMPTS[0], max_new_tokens=5), run.evaluate([{"text": "v5;"}])) == first


def test_the_loss_is_that_of_the_command_for_a_file_and_for_rows(run_folder, model_folder, data_files):
    given = EvaluateArguments(
        model=str(model_folder), adapter=(str(run_folder / "adapter"),), data_file=(str(data_files[1]),)
    )
    expected = {name: evaluate.evaluate(given)[0][name] for name in ("loss", "perplexity", "accuracy", "tokens")}
    run = load(run_folder)
    rows = [json.loads(line) for line in data_files[1].read_text().splitlines()]
    assert run.evaluate(data_files[1]) == run.evaluate(rows) == pytest.approx(expected, rel=1e-6)
    assert math.isclose(expected["perplexity"], math.exp(expected["loss"]))
    named = [{"q": row["instruction"], "a": row["output"]} for row in rows]
    assert run.evaluate(named, columns={"instruction": "q", "output": "a"}) == run.evaluate(rows)
    longer = run.evaluate(rows, loss_on="all")
    assert longer["tokens"] > expected["tokens"]
    assert run.evaluate([data_files[1], data_files[2]])["tokens"] > expected["tokens"]


def test_records_are_read_as_the_run_read_them(model_folder, data_files, tmp_path):
    run = load(trained_run(tmp_path / "run", model_folder, KINDS["lora"], "--data.loss-on", "all"))
    plain = FinetunedModel(str(model_folder), str(run.folder / "adapter"))
    assert run.evaluate(data_files[1]) == plain.evaluate(data_files[1], loss_on="all") != plain.evaluate(data_files[1])


@pytest.mark.parametrize("format", ["merged", "adapter", "lora"])
def test_an_export_is_that_of_the_command(format, model_folder, tmp_path):
    run = trained_run(tmp_path / "run", model_folder, KINDS["lora"])
    command(export.main, ["--run", str(run), "--format", format, "--output", str(tmp_path / "by command")])
    assert load(run).export(tmp_path / "by call", format) == tmp_path / "by call"
    assert contents(tmp_path / "by call") == contents(tmp_path / "by command")


def test_a_model_and_a_model_with_an_adapter_are_opened_too(run_folder, model_folder, data_files, tmp_path):
    run = load(run_folder)
    expected = run.evaluate(data_files[1])
    merged = run.export(tmp_path / "merged")
    assert load(merged).evaluate(data_files[1]) == pytest.approx(expected, rel=1e-5)
    beside = load(model_folder, run_folder / "adapter")
    assert beside.evaluate(data_files[1]) == pytest.approx(expected, rel=1e-6)
    assert load(model_folder).evaluate(data_files[1])["loss"] != pytest.approx(expected["loss"], rel=1e-3)
    assert load(model_folder, quantization="int8").form == ModelConfig(quantization="int8")
    for call in (lambda: beside.metrics, beside.plot, lambda: beside.export(tmp_path / "x")):
        with pytest.raises(
            InputError, match=r"needs the folder of a run, and this is .* with .*/adapter; open the run"
        ):
            call()
    assert beside.folder is None and not (tmp_path / "x").exists()


def test_a_base_is_held_as_the_run_held_it(model_folder, data_files, tmp_path):
    run = load(
        trained_run(
            tmp_path / "run", model_folder, KINDS["lora"], "--model.quantization", "nf4", "--data.batch-size", "4"
        )
    )
    beside = load(model_folder, run.folder / "adapter", quantization="nf4")
    assert run.evaluate(data_files[1]) == beside.evaluate(data_files[1])
    assert run.evaluate(data_files[1]) != load(model_folder, run.folder / "adapter").evaluate(data_files[1])


def test_metrics_are_a_list_and_a_frame_and_are_drawn(run_folder):
    run = load(run_folder)
    with pytest.raises(InputError, match=r"has no metrics\.jsonl: nothing has been trained in it yet"):
        run.plot()
    steps = [*lines(4, evaluation_loss=1.5), *lines(2, "retrain")]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    assert run.metrics == steps and isinstance(run.metrics, list)
    frame = run.metrics.to_pandas()
    assert list(frame["train_loss"]) == [2, 1, 2 / 3, 0.5, 2, 1]
    assert frame["evaluation_loss"].isna().tolist() == [False] * 4 + [True] * 2
    figure = run.plot()
    assert figure.axes[0].get_ylabel() == "nats per token"
    assert figure._repr_png_()[:4] == b"\x89PNG"  # what a notebook shows
    assert run.plot("speed").axes
    with pytest.raises(InputError, match="there is no picture 'sped'; this run has loss, learning_rate"):
        run.plot("sped")


REFUSED = [
    (lambda run: run.generate("a", temprature=1), "generate has no setting temprature (did you mean 'temperature'?)"),
    (lambda run: run.generate("a", temperature=-1.0, top_p=0.0), "temperature must be at least 0, found -1.0\ntop_p must be"),
    (lambda run: run.generate("a", top_k=3), "act on draws: give a temperature above 0"),
    (lambda run: run.generate("a", max_new_tokens=0), "max_new_tokens must be at least 1, found 0"),
    (lambda run: run.generate("a", raw=True, system="b"), "system is written by a chat template: leave it out"),
    (lambda run: run.generate(3), "prompt 1 must be a text or a dictionary, found int"),
    (lambda run: run.generate([{"code": "x"}]), "prompt 1 asks nothing"),
    (lambda run: run.generate("a" * 250), "the model has a context of 256 tokens"),
    (lambda run: run.evaluate([{"a": "b"}]), "\n  data row 1: has none of the keys"),
    (lambda run: run.evaluate([{"text": b"b"}]), "data row 1, column 'text': a value of kind bytes has no form in JSON"),
    (lambda run: run.evaluate("none.jsonl"), "no data file at none.jsonl"),
    (lambda run: run.evaluate([{"text": "b"}], batchsize=3), "evaluate has no setting batchsize (did you mean 'batch_size'?)"),
    (lambda run: run.evaluate([{"text": "b"}], max_length=1), "max_length must be at least 2, found 1"),
    (lambda run: run.evaluate([{"text": "b"}], loss_on="response "), "loss_on must be one of response, turns, all"),
    (lambda run: run.export("x", "mergd"), "format must be one of merged, adapter, lora, gguf, gguf-lora, found 'mergd'"),
    (lambda run: run.export("x", dtype="f32"), "dtype must be one of source, half, float32, bfloat16, float16, found 'f32'"),
    (lambda run: run.export("x", "lora", dtype="float32"), "dtype and merge_base are for format=\"merged\""),
    (lambda run: run.export("x", rank=3), 'rank and max_error are for format="lora"'),
    (lambda run: load(run.folder, "a"), "is a run folder, which has its own adapter"),
    (lambda run: load(run.folder, dtype="float32"), "is a run folder, which has its own adapter, dtype"),
    (lambda run: load(run.model, quantization="nf8"), "quantization must be one of none, int8, nf4, found 'nf8'"),
    (lambda run: load(run.model, "no/adapter"), "no/adapter"),
    (lambda run: load("no/model/at/all"), "no/model/at/all"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), REFUSED, ids=[says[:30] for _, says in REFUSED])
def test_a_call_that_cannot_be_answered_is_refused(call, says, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as refused:
        call(load(run_folder))
    assert says in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_a_run_that_is_not_finished_is_refused_with_the_call_that_goes_on(run_folder):
    shutil.rmtree(run_folder / "adapter")
    with pytest.raises(
        InputError, match=r"the run is not finished; go on with finetune\('.*config.json', resume=True\)"
    ):
        bidora_jax.load(run_folder)
