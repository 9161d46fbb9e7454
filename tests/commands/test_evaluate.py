"""evaluate.py, data/file_batches.py, tasks/evaluation.py: a file's loss against a sum by hand, against transformers, with the
adapter and merged."""

import json
import math
import shutil
from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from classifier_folders import write_classifier

from bidora_jax import evaluate
from bidora_jax.config import Config
from bidora_jax.data import encoding, token_cache
from bidora_jax.data.labels import Labels
from bidora_jax.data.records import Record
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import command
from bidora_jax.generation import decoding
from bidora_jax.models import decoder
from bidora_jax.models.formats import hf, hf_config
from bidora_jax.runs import assembly, execution
from bidora_jax.tasks import evaluation


def evaluated(*argv: str, to) -> dict:
    command(evaluate.main, [*argv, "--json", str(to)])
    return json.loads(to.read_text())


def examples(model_folder, data_file, **how):
    """(tokens, trained) of every record, one at a time."""
    tokenizer = load_tokenizer(model_folder)
    how = {"max_length": 1024, "loss_on": "response"} | how
    return [encoding.encode(record, tokenizer, **how) for record in encoding.read_records(data_file)]


def mean_loss(logits_of, given) -> tuple[float, int]:
    """Σ −log p over trained tokens / their number, record by record without padding, in float64."""
    total, count = 0.0, 0
    for example in given:
        logits = np.asarray(logits_of(example.tokens), np.float64)[:-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = log_p[np.arange(len(logits)), example.tokens[1:]][example.trained[1:]]
        total, count = total - chosen.sum(), count + len(chosen)
    return total / count, count


def accuracy(logits_of, given) -> float:
    """Trained tokens that are the most probable ones, as a share."""
    hits = [
        (np.asarray(logits_of(example.tokens))[:-1].argmax(-1) == example.tokens[1:])[example.trained[1:]]
        for example in given
    ]
    return float(np.concatenate(hits).mean())


def our_logits(folder):
    config = hf_config.read_config(folder)
    base = hf.load_base(folder, config)

    def logits(tokens):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens  # one shape, one compilation; the causal mask keeps padding out
        return decoder.logits(config, None, base, {}, {}, jnp.asarray(padded))[0, : len(tokens)]

    return logits


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_the_loss_is_the_token_weighted_mean_over_the_file(model_folder, data_files, tmp_path, capfd, loss_on):
    """Batches of 3 that do not divide 5 records, of unlike numbers of tokens: a mean of means would differ."""
    argv = ["--model", str(model_folder), "--data-file", str(data_files[2]), "--batch-size", "3", "--loss-on", loss_on]
    found = evaluated(*argv, to=tmp_path / "out.json")
    given = examples(model_folder, data_files[2], loss_on=loss_on)
    loss, count = mean_loss(our_logits(model_folder), given)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)  # sums of float32 in batches against float64
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found["tokens"], found["records"], found["records_cut"], found["records_dropped"]) == (count, 5, 0, 0)
    out = capfd.readouterr().out
    assert f"loss        {found['loss']:.6f}" in out
    assert f"perplexity  {found['perplexity']:.4f}" in out
    assert f"accuracy    {found['accuracy']:.1%} of the tokens are the most probable ones\n" in out
    assert found["accuracy"] == pytest.approx(accuracy(our_logits(model_folder), given))
    assert f"tokens      {count} trained tokens of 5 records\n" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json"]


def test_tokens_of_a_file_are_kept_for_the_next_time(model_folder, data_files, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(token_cache, "encode_all", partial(token_cache.encode_all, worth=0.0))
    how = ("--model", str(model_folder), "--data-file", str(data_files[2]), "--token-cache")
    first = evaluated(*how, str(tmp_path / "kept"), to=tmp_path / "1.json")
    assert "tokens read" not in capfd.readouterr().err
    assert evaluated(*how, str(tmp_path / "kept"), to=tmp_path / "2.json") == first
    assert "tokens read in" in capfd.readouterr().err
    assert evaluated(*how, "", to=tmp_path / "3.json") == first
    assert "tokens read" not in capfd.readouterr().err


def test_test_records_are_answered_in_even_batches_that_change_nothing(model_folder, data_files, monkeypatch):
    assert [evaluation.rows(records) for records in (1, 64, 65, 96, 200)] == [1, 64, 33, 48, 50]
    config, tokenizer = hf_config.read_config(model_folder), load_tokenizer(model_folder)
    test = encoding.read_records(data_files[2])
    assert len(test) == 5
    given = (decoding.assemble(config, hf.load_base(model_folder, config)), tokenizer, test)
    together = evaluation.answer(*given, max_new_tokens=9, ends=[0])
    monkeypatch.setattr(evaluation, "ANSWERED", 2)  # two, two and one
    assert evaluation.answer(*given, max_new_tokens=9, ends=[0]) == together


def test_what_is_cut_and_what_is_dropped_is_counted(model_folder, tmp_path, capfd):
    lines = [{"instruction": "a", "output": "v1;"}, {"instruction": "a", "output": "v" * 30},
             {"instruction": "a" * 90, "output": "v1;"}]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = evaluated("--model", str(model_folder), "--data-file", str(tmp_path / "data.jsonl"), "--max-length", "48",
                      to=tmp_path / "out.json")  # fmt: skip
    assert (found["records"], found["records_cut"], found["records_dropped"]) == (3, 2, 1)
    assert "2 records cut at 48 tokens, 1 dropped for want of a trained token" in capfd.readouterr().out


def test_a_long_text_is_evaluated_whole_in_chunks(model_folder, tmp_path, capfd):
    file, how = tmp_path / "data.jsonl", {"max_length": 48, "loss_on": "response", "long": "split"}
    file.write_text("\n".join(json.dumps({"text": text}) for text in ("v1; " * 26, "v2;")))
    tokenizer = load_tokenizer(model_folder)
    chunks = [one for record in encoding.read_records(file) for one in encoding.encode_each(record, tokenizer, **how)]
    assert [len(one.tokens) for one in chunks] == [48, 33, 24, 4]
    loss, count = mean_loss(our_logits(model_folder), chunks)
    argv = ["--model", str(model_folder), "--data-file", str(file), "--max-length", "48"]
    found = evaluated(*argv, to=tmp_path / "out.json")
    assert count == 105 + 4 - 4 and found["tokens"] == count
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert [found[name] for name in ("records", "records_split", "chunks", "records_cut")] == [2, 1, 3, 0]
    assert "1 records split into 3 chunks\n" in capfd.readouterr().out


def test_answers_to_test_records_stop_at_every_end_that_the_model_has(model_folder, tmp_path):
    """A chat model may end a turn with another token than its tokenizer's end of text, as generate knows."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config, tokenizer = hf_config.read_config(folder), load_tokenizer(folder)
    test = [Record({"instruction": text, "output": ""}) for text in ("repeat 3", "ab")]
    problem = SimpleNamespace(decoder=config, base=hf.load_base(folder, config), gathered=lambda tree: tree)
    parts = assembly.RunInputs(problem, tokenizer, test, [], folder, [], "")

    def answers(end):
        ends = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]}
        (folder / "generation_config.json").write_text(json.dumps(ends))
        return execution.answers(Config(max_new_tokens=9), parts).texts

    whole = answers("<|im_start|>")  # two ends here too: one compiled program
    stop = whole[0][3]  # a character is a token
    assert answers(stop) == [text.partition(stop)[0] for text in whole]


@pytest.mark.slow
def test_base_with_adapter_and_merged_model_have_the_same_loss(finished_run, data_files, tmp_path):
    run = finished_run / "run"
    base = json.loads((run / "config.json").read_text())["model"]["path"]
    data = ["--data-file", str(data_files[1]), "--batch-size", "5"]
    bare = evaluated("--model", base, *data, to=tmp_path / "bare.json")
    both = evaluated("--model", base, "--adapter", str(run / "adapter"), *data, to=tmp_path / "both.json")
    merged = evaluated("--model", str(run / "merged"), *data, to=tmp_path / "merged.json")
    assert merged["perplexity"] == pytest.approx(both["perplexity"], rel=1e-4)
    assert abs(bare["loss"] / both["loss"] - 1) > 1e-2  # without the adapter it is another model
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert both["loss"] == pytest.approx(metrics[-1]["evaluation_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.torch
def test_the_loss_is_that_of_a_transformers_loop(finished_run, data_files, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    merged = finished_run / "run" / "merged"
    found = evaluated("--model", str(merged), "--data-file", str(data_files[1]), to=tmp_path / "out.json")
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)

    @torch.no_grad()
    def logits(tokens):
        return model(torch.from_numpy(tokens[None]).long()).logits[0].numpy()

    loss, count = mean_loss(logits, examples(merged, data_files[1]))
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_interrupted_it_says_so_in_one_word(model_folder, data_files, capfd, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "load", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command(evaluate.main, ["--model", str(model_folder), "--data-file", str(data_files[2])])
    assert (stopped.value.code, capfd.readouterr().err) == (130, "stopped\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--data-file", "none.jsonl"], "no data file at none.jsonl; check the path"),
     (["--model", "no-such-folder"], "there is no folder no-such-folder"),
     (["--adapter", "no-such-adapter"], "there is no folder no-such-adapter"),
     (["--batch-size", "0"], "--batch-size must be at least 1"),
     (["--json", "nowhere/out.json"], "there is no folder for --json nowhere/out.json")],
)  # fmt: skip
def test_bad_input_is_refused_with_one_message(model_folder, data_files, tmp_path, capfd, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(model_folder), "--data-file", str(data_files[2]), "--json", "out.json", *flags]
    with pytest.raises(SystemExit) as stopped:
        command(evaluate.main, argv)
    out, err = capfd.readouterr()
    assert (stopped.value.code, out, err.count("error: ")) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_a_file_does_not_define_is_left_out_and_said(model_folder, tmp_path, capfd):
    classifier = write_classifier(tmp_path / "classifier", model_folder, Labels("classification", ("a", "b")))
    file = tmp_path / "one_label.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in ("one", "two", "three")))
    flags = ("--model", str(classifier), "--data-file", str(file), "--compilation-cache", "")
    found = evaluated(*flags, to=tmp_path / "found.json")
    assert {"loss", "accuracy", "log_loss", "records"} <= found.keys() and not {"auc", "f1", "matthews"} & found.keys()
    said = capfd.readouterr().err
    assert "auc is left out: every row has the label 'a'" in said and "f1 is left out: no row has the label 'b'" in said
