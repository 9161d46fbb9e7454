"""Uploads: huggingface_hub's own client against a hub on this machine, and every way in which one can fail."""

import json
import os
from pathlib import Path

import hub_server
import pytest
from huggingface_hub import constants
from runs import contents, trained_run

from bidora_jax import export
from bidora_jax.errors import command
from bidora_jax.machine.files import read_json
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import hub
from bidora_jax.runs import exporting

SETTINGS = AdapterConfig("lora", rank=3, alpha=6.0, target_modules=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("pushed") / "run", model_folder, SETTINGS)


@pytest.fixture
def server(monkeypatch):
    with hub_server.hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield found


def exported(run, output, *flags):
    command(export.main, ["--run", str(run), "--format", "adapter", "--output", str(output), *flags])


def refused(run, output, capfd, *flags) -> str:
    with pytest.raises(SystemExit) as stopped:
        exported(run, output, *flags)
    said = capfd.readouterr().err
    assert (stopped.value.code, said.count("error: ")) == (2, 1)
    return said


def test_nothing_is_uploaded_unasked(run, server, tmp_path):
    exported(run, tmp_path / "a")
    assert (server.paths, sorted(contents(tmp_path / "a"))) == (
        [],
        ["adapter_config.json", "adapter_model.safetensors"],
    )


@pytest.mark.parametrize(("flags", "visibility"), [([], "private"), (["--public"], "public")])
def test_the_hub_gets_the_folder_that_was_proved_and_a_card(run, server, tmp_path, capfd, flags, visibility):
    exported(run, tmp_path / "a", "--push", "some-org/my.lora", *flags)
    assert server.files == contents(tmp_path / "a")
    assert sorted(server.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert [(one["organization"], one["name"], one["visibility"]) for one in server.created] == [
        ("some-org", "my.lora", visibility)
    ]
    out = capfd.readouterr().out
    assert out.index("adapter read back") < out.index(f"uploaded to {server.address}/some-org/my.lora")
    said = server.files["README.md"].decode()
    assert "library_name: peft" in said
    assert "\n# my.lora\n" in said
    assert "fine-tuned with LoRA by bidora_jax" in said
    assert "only comes near" not in said
    assert "rank 3, alpha 6 on q_proj, v_proj" in said
    settings = json.loads(server.files["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "tiny-qwen3"
    # The base is a folder here: the hub knows nothing of it, and its readers have no business with the path.
    assert "base_model" not in said
    assert "`tiny-qwen3` fine-tuned" in said


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_token_to_another_server(run, server, tmp_path, capfd, status):
    with hub_server.hub() as other:
        server.redirect = (status, other.address.replace("127.0.0.1", "localhost"))
        refused(run, tmp_path / "a", capfd, "--push", "some-org/my.lora")
        assert set(server.tokens) == {f"Bearer {hub_server.TOKEN}"}
        assert other.paths and set(other.tokens) == {None} and other.files == {}
    assert sorted(contents(tmp_path / "a")) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("format", ["adapter", "lora", "merged"])
def test_no_file_that_leaves_names_a_folder_of_this_machine(run, server, tmp_path, format):
    argv = ["--run", str(run), "--format", format, "--output", str(tmp_path / "a"), "--push", "some-org/mine"]
    command(export.main, argv)
    assert server.files == contents(tmp_path / "a") and len(server.files) > 2
    here = [str(run.parent), str(tmp_path), read_json(run / "config.json", "")["model"]["path"], str(Path.home())]
    assert all(map(os.path.isabs, here))
    assert [(name, path) for name, content in server.files.items() for path in here if path.encode() in content] == []


def test_a_card_says_what_is_inexact(run):
    notes = ["A plain LoRA only comes near to the trained adapter: rank 8.", "validation: loss 2.0000 of the base"]
    text = exporting.card(run, "org/name", format="lora", notes=notes)
    assert text.endswith("\n\n" + "\n\n".join(notes) + "\n")


def test_a_card_names_a_base_that_the_hub_has():
    from huggingface_hub import ModelCard

    text = hub.card("t", library="transformers", base="Qwen/Qwen3-0.6B", tags=("bidora",), paragraphs=("One.", "Two."))
    assert text.endswith("\n---\n\n# t\n\nOne.\n\nTwo.\n")
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.tags) == ("Qwen/Qwen3-0.6B", "transformers", ["bidora"])


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [(200, "hf_unknown", "the hub does not know this token"), (403, None, "this token may not write there"),
     (0, None, "the hub can't be reached (ConnectError: "), (507, None, "507")],
)  # fmt: skip
def test_an_upload_that_fails_leaves_the_folder(run, server, tmp_path, capfd, monkeypatch, status, token, said):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    server.status = status or 200
    if not status:  # a port that nobody listens on
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    err = refused(run, tmp_path / "a", capfd, "--push", "org/name")
    assert f"{tmp_path / 'a'} is written, but its upload to org/name failed: " in err
    assert said in err
    assert f"upload it later with: hf upload org/name {tmp_path / 'a'} --private" in err
    assert sorted(contents(tmp_path / "a")) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [("name", {}, "expected ORG/NAME, an organisation or user and the name of a repository: it has to name its owner"),
     ("a/b/c", {}, "expected ORG/NAME"), ("org/na me", {}, "expected ORG/NAME"), ("org/a--b", {}, "Cannot have -- or .."),
     ("org/name", {"HF_TOKEN": ""}, "there is no token for the hub; log in with `hf auth login`"),
     ("org/name", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it")],
)  # fmt: skip
def test_what_cannot_be_uploaded_is_said_before_any_work(
    run, server, tmp_path, capfd, monkeypatch, name, environment, said
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    assert said in refused(run, tmp_path / "a", capfd, "--push", name)
    assert (contents(tmp_path), server.paths) == ({}, [])


def test_flags_of_another_call_are_refused(run, model_folder, tmp_path, capfd):
    assert "--public is for --push" in refused(run, tmp_path / "a", capfd, "--public")
    with pytest.raises(SystemExit):
        command(export.main, ["--model", str(model_folder), "--push", "a/b", "--output", str(tmp_path / "a")])
    assert "--push is for --run" in capfd.readouterr().err
