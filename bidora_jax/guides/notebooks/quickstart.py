# %% [markdown] id="about"
# # bidora_jax in ten cells
#
# A small Qwen3, which comes with the package, learns to write OpenSCAD code in a given style: on a CPU, without a network,
# in a few minutes. On Colab name a wheel of bidora_jax or `git+https://…` of its source in `PACKAGE`, and the runtime's
# type in `DEVICE`.
#
# The theory, a model of the hub and your own records are in the notebooks [LoRA](lora.ipynb), [QLoRA](qlora.ipynb) and
# [BiDoRA](bidora.ipynb). Every setting is in [the guides](../python.md).

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
# `MODEL` may be a name on the hub (`Qwen/Qwen3-0.6B`, which wants a GPU and a `LEARNING_RATE` of 0.0002) in place of the
# package's small one. The records are instructions with the code that answers them.

# %% id="settings"
# @title Settings
MODEL = "quickstart"  # @param {type: "string"}
LEARNING_RATE = 0.004  # @param {type: "number"}
STEPS = 120  # @param {type: "integer"}
RECORDS = 480  # @param {type: "integer"}

import json
import os

from bidora_jax import quickstart

STEPS = int(os.environ.get("BIDORA_STEPS", STEPS))  # the package's own test of this notebook gives
RECORDS = int(os.environ.get("BIDORA_RECORDS", RECORDS))  # fewer of both
model = str(quickstart.MODEL) if MODEL == "quickstart" else MODEL
lines = (quickstart.DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
rows = [json.loads(line) for line in lines[:RECORDS]]
question = "Make the nozzle, a red cylinder of diameter 23 and height 41."
print(json.dumps(rows[0], indent=2))

# %% [markdown] id="training-about"
# `finetune` takes paths, lists of rows, data sets and frames, and returns the result, which answers, is evaluated and
# exported. `method` may be lora, dora or bidora. The training splits off a fifth of the records, and keeps the step that
# does best on them.

# %% id="training"
from bidora_jax import finetune, load

run = finetune(
    {"model": {"dtype": "float32"}, "search": {"steps": STEPS}},
    model=model,
    train=rows,
    val=0.2,
    method="dora",
    rank=8,
    lr=LEARNING_RATE,
    batch_size=8,
    max_length=160,
    report=False,  # a page of curves for the folder; one of them is drawn here
)

# %% id="curves"
run.plot()

# %% id="evaluation"
run.evaluate(quickstart.DATA / "test.jsonl", batch_size=24)  # records that training has not seen

# %% id="chat"
base = load(model, dtype="float32")
for name, one in {"before": base, "after": run}.items():
    print(f"--- {name}", one.generate(question, max_new_tokens=64), sep="\n")

# %% id="export"
exported = run.export(f"{run.folder}-merged", format="merged")  # a folder that every engine reads
again = load(exported, dtype="float32")
print(exported, again.generate(question, max_new_tokens=64), sep="\n")
