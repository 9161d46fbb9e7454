# %% [markdown] id="about"
# # QLoRA
#
# Fine-tunes a language model by LoRA on a base in 4 bits, with bidora_jax: setup, theory, data, template, training,
# evaluation, chat, export, upload. As it stands it runs on a CPU, without a network, in a few minutes.

# %% [markdown] id="setup-about"
# ## Setup
#
# `PACKAGE` is what pip installs where bidora_jax is not there yet: a wheel that you have uploaded (`pip wheel .` in the
# source tree makes it), or `git+https://…` of the source. On Colab choose the runtime's type first, and name it in
# `DEVICE`: JAX comes in a build for each. The cell stops where JAX finds another device than that.

# %% id="setup"
# @title Setup
PACKAGE = ""  # @param {type: "string"}
DEVICE = "CPU"  # @param ["CPU", "GPU", "TPU"]

import importlib.util
import subprocess
import sys

if importlib.util.find_spec("bidora_jax"):
    print("bidora_jax can be imported: nothing to install")
elif PACKAGE:
    build = {"CPU": "jax", "GPU": "jax[cuda12]", "TPU": "jax[tpu]"}[DEVICE]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PACKAGE, build], check=True)
    importlib.invalidate_caches()
else:
    raise RuntimeError("bidora_jax is not installed: name a wheel of it, or git+https://… of its source, in PACKAGE")

import jax

if DEVICE != "CPU" and jax.default_backend() != DEVICE.lower():
    raise RuntimeError(
        f"DEVICE is {DEVICE}, and JAX found {jax.default_backend()}: choose the runtime's type, or set DEVICE to CPU"
    )
print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown] id="settings-about"
# ## Settings
#
# With `MODEL` and `DATA` at `quickstart` nothing is downloaded: a Qwen3 of under a million parameters and its records come
# with the package, and a CPU will do. For a model of the hub give its name (`Qwen/Qwen3-0.6B`), or a folder. `DATA` is then
# a file or `ORG/NAME@SPLIT` of the hub ([sources](../sources.md), [records](../records.md)), and `TEST` records that
# training never sees.
#
# | field | quickstart | Qwen3-0.6B on a GPU or a TPU |
# | --- | --- | --- |
# | `DTYPE` | float32 | bfloat16 |
# | `LEARNING_RATE` | 0.004 | 0.0002 |
# | `STEPS` | 120 | three times the records / `BATCH_SIZE` |
# | `MAX_LENGTH`, `MAX_NEW_TOKENS` | 160, 88 | 1024, 256 |
#
# A model that asks for a login needs a token: Colab's secret `HF_TOKEN`.

# %% id="settings"
# @title Settings
MODEL = "quickstart"  # @param {type: "string"}
DATA = "quickstart"  # @param {type: "string"}
TEST = ""  # @param {type: "string"}
DTYPE = "float32"  # @param ["float32", "bfloat16", "auto"]
RANK = 8  # @param {type: "integer"}
ALPHA = 16  # @param {type: "integer"}
LEARNING_RATE = 0.004  # @param {type: "number"}
STEPS = 120  # @param {type: "integer"}
BATCH_SIZE = 8  # @param {type: "integer"}
MAX_LENGTH = 160  # @param {type: "integer"}
MAX_NEW_TOKENS = 88  # @param {type: "integer"}
QUESTION = "Make a cyan cylinder of diameter 20 and height 31, named stand."  # @param {type: "string"}

import os

from bidora_jax import quickstart

# The package's own test of this notebook gives three of the fields so: a few records, and a few steps.
DATA, TEST = os.environ.get("BIDORA_DATA", DATA), os.environ.get("BIDORA_TEST", TEST)
STEPS = int(os.environ.get("BIDORA_STEPS", STEPS))
model = str(quickstart.MODEL) if MODEL == "quickstart" else MODEL
data = str(quickstart.DATA / "train.jsonl") if DATA == "quickstart" else DATA
test = str(quickstart.DATA / "test.jsonl") if DATA == "quickstart" and not TEST else TEST
if not test:
    raise ValueError("DATA is your own, so name records that training never sees in TEST")

# %% [markdown] id="theory"
# ## What is stored in 4 bits
#
# The frozen weight is cut into blocks of 64. Each block is divided by its largest magnitude, and each of its numbers
# becomes the index of the nearest of 16 levels $q_0 \dots q_{15}$ ([2305.14314](https://arxiv.org/abs/2305.14314)):
#
# $$c = \max_{i \in \text{block}} |w_i|, \qquad k_i = \arg\min_k \left| \frac{w_i}{c} - q_k \right|, \qquad
# \hat w_i = c \, q_{k_i}$$
#
# The update stays in float32, and is trained as LoRA trains it: $W' = \hat W_0 + \frac{\alpha}{r} B A$. The weights of a
# trained network are nearly normal. So NF4 puts its levels at quantiles of the normal distribution: close together where
# most weights are. With $c$ in 8 bits too (double quantisation) a weight takes 4.13 bits. A model of 7 billion weights has
# 3.6 GB in place of 14.

# %% id="picture"
import matplotlib.pyplot as plt
import numpy as np

from bidora_jax.kernels.quantized import CODEBOOK

blocks = np.random.default_rng(0).normal(size=(2000, 64))
scaled = (blocks / np.abs(blocks).max(axis=1, keepdims=True)).ravel()
figure, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
for row, (name, levels) in zip(axes, {"NF4": CODEBOOK, "16 even levels": np.linspace(-1, 1, 16)}.items(), strict=True):
    nearest = levels[np.abs(scaled[:, None] - levels).argmin(axis=1)]
    error = np.sqrt(np.mean((nearest - scaled) ** 2) / np.mean(scaled**2))
    row.hist(scaled, bins=100, color="lightgrey")
    row.vlines(levels, 0, row.get_ylim()[1], color="tab:blue", linewidth=1)
    row.set_title(f"{name}: normal weights are off by {error:.1%}", loc="left", fontsize=10)
    row.set_yticks([])
axes[1].set_xlabel("weight / largest magnitude of its block of 64")
plt.show()

# %% [markdown] id="data-about"
# ## Data
#
# Three records as the training reads them, the trained text between ⟦ and ⟧; then how long records are, and what an epoch is.
# A fifth of them is split off for validation.

# %% id="data"
from bidora_jax import show_data

how = ["--data.val-fraction", "0.2", "--max-length", str(MAX_LENGTH), "-b", str(BATCH_SIZE), "--method", "lora"]
show_data.main(["-m", model, "-t", data, *how])

# %% [markdown] id="template-about"
# ## Template
#
# The model's own chat template writes a question and opens the answer. Training, evaluation and chat below all write it so;
# only the tokens of the answer, with the one that ends it, are trained.

# %% id="template"
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(model)
if tokenizer.chat_template:
    turns = [{"role": "user", "content": QUESTION}]
    print(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
else:
    print("the model has no chat template: questions are written in the plain one of bidora_jax")

# %% [markdown] id="training-about"
# ## Training
#
# `quantization="nf4"` quantises the linear layers while the model is loaded, to the same bytes as bitsandbytes. A weight is
# dequantised a layer at a time; products are computed in `DTYPE`. Each run has a fresh folder, which can be resumed,
# exported and evaluated from the command line too ([quantised bases](../quantized_bases.md)).

# %% id="training"
from bidora_jax import finetune

run = finetune(
    {"model": {"dtype": DTYPE}, "search": {"steps": STEPS}},
    model=model,
    quantization="nf4",
    train=data,
    val=0.2,
    method="lora",
    rank=RANK,
    alpha=ALPHA,
    lr=LEARNING_RATE,
    batch_size=BATCH_SIZE,
    max_length=MAX_LENGTH,
    report=False,  # a page of curves for the folder; one of them is drawn here
)

# %% id="curves"
run.plot()

# %% [markdown] id="evaluation-about"
# ## Evaluation
#
# On the test records: the loss in nats a token, the perplexity e^loss, and how many of the answers' tokens are the most
# probable ones.

# %% id="evaluation"
from bidora_jax import load

reading = {"max_length": MAX_LENGTH, "batch_size": BATCH_SIZE}
scores = {
    "before": load(model, dtype=DTYPE, quantization="nf4").evaluate(test, **reading),
    "after": run.evaluate(test, **reading),
}
for name, found in scores.items():
    print(
        f"{name:<6} loss {found['loss']:.4f}  perplexity {found['perplexity']:.3f}  {found['accuracy']:.1%} of the tokens"
    )

# %% [markdown] id="chat-about"
# ## Chat
#
# `say` keeps the conversation, so that a further call goes on with it.

# %% id="chat"
conversation: list[dict[str, str]] = []


def say(text: str) -> None:
    conversation.append({"role": "user", "content": text})
    answer = run.generate({"messages": conversation}, max_new_tokens=MAX_NEW_TOKENS)
    conversation.append({"role": "assistant", "content": answer})
    print(answer)


say(QUESTION)

# %% [markdown] id="export-about"
# ## Export
#
# `merged` adds the update to the dequantised weights: that is the model that was trained. `run.export(…,
# merge_base="original")` adds it to the 16-bit ones instead. `adapter` and `lora` hold the update alone, for a base that
# the engine quantises itself. What is written is read back and compared with the trained model before the folder gets its
# name ([deployment](../deployment.md); the command `export` there also writes GGUF files for llama.cpp and Ollama). `load`
# opens the run again on another day.

# %% id="export"
# @title Export
EXPORT = "merged"  # @param ["merged", "adapter", "lora"]

exported = run.export(f"{run.folder}-{EXPORT}", format=EXPORT)
print(exported, *sorted(path.name for path in exported.iterdir()), sep="\n  ")

# %% [markdown] id="upload-about"
# ## Upload
#
# With `UPLOAD_TO` empty nothing leaves this machine. `ORG/NAME` writes the same once more, with a model card, and uploads
# it to that repository of the hub, which is private if it is new. That needs a token that may write.

# %% id="upload"
# @title Upload
UPLOAD_TO = ""  # @param {type: "string"}

if UPLOAD_TO:
    from bidora_jax import export

    folder = f"{exported}-uploaded"
    export.main(["--run", str(run.folder), "--format", EXPORT, "--output", folder, "--push", UPLOAD_TO])
else:
    print("UPLOAD_TO is empty: nothing is uploaded")
