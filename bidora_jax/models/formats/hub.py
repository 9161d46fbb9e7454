"""Uploads of a written folder to the Hugging Face hub, on request, with a model card.

What needs no network is checked before any work: the form of the name, and that there is a token. The folder is on disk and
proved when the upload begins, and stays whatever becomes of it. Repositories are private unless they are asked to be public.
"""

import os
import re
from pathlib import Path

from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole

CARD = "README.md"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def check(name: str) -> None:
    """InputError for a name that no repository can have, and where there is no token."""
    from huggingface_hub import get_token  # slow, and few exports are uploaded
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        wrong = "" if name.count("/") == 1 else "it has to name its owner too"
    except HFValidationError as error:
        wrong = str(error)
    if wrong:
        raise InputError(
            f"--push {name}: expected ORG/NAME, an organisation or user and the name of a repository: {wrong}"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise InputError(f"--push {name}: HF_HUB_OFFLINE is set; unset it, or export without --push")
    if not get_token():
        raise InputError(f"--push {name}: there is no token for the hub; {LOGIN}")


def push(folder: Path, name: str, *, public: bool) -> str:
    """Uploads a folder and returns the address of its repository, which is made where there is none.

    InputError where the hub can't be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="bidora_jax")
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name} with bidora_jax")
    except Exception as error:  # which library's errors a failed request raises differs between versions of the client
        raise InputError(
            f"{folder} is written, but its upload to {name} failed: {_reason(error)}\n"
            f"upload it later with: hf upload {name} {folder}{'' if public else ' --private'}"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if status == 401:
        return f"the hub does not know this token ({said}); {LOGIN}"
    if status == 403:
        return f"this token may not write there ({said}); use a token with write access to the owner of that name"
    return f"{said}" if status else f"the hub can't be reached ({type(error).__name__}: {said}); is there a network?"


def write_card(folder: Path, text: str) -> None:
    """Writes the model card of a folder that is complete."""
    write_whole(folder / CARD, text)


def card(title: str, *, library: str, base: str, tags: tuple[str, ...], paragraphs: tuple[str, ...]) -> str:
    """A model card. Its metadata name the base only where the base has a name on the hub, and is no folder."""
    named = bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base)) and not Path(base).is_dir()
    relation = "adapter" if library == "peft" else "finetune"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    lines += [f"base_model: {base}", f"base_model_relation: {relation}"] if named else []
    lines += ["tags:", *[f"- {tag}" for tag in tags], "---", "", f"# {title}"]
    return "\n".join([*lines, *[line for paragraph in paragraphs for line in ("", paragraph)]]) + "\n"
