"""BiDoRA on peptides that cross the blood-brain barrier or do not, with ESM-2: a protein task of the BiDoRA paper.

    command       python -m bidora_jax.train --config configs/protein.py --data.train-file train.csv --data.test-file test.csv
    data          rows of a sequence and a label, such as those of DeepB3P, whose FASTA files hold one class each
    reached       not run here: the model and the data are not at hand. The paper (arXiv:2410.09758, table 4) has an accuracy of
                  92.1 with ESM-2 of 650M, LoRA 86.8, DoRA 89.4
    date          2026-11-29

The smallest ESM-2 by default, which a laptop trains; facebook/esm2_t33_650M_UR50D is the paper's.
"""

from ml_collections import ConfigDict


def get_config(model: str = "facebook/esm2_t6_8M_UR50D") -> ConfigDict:
    config = ConfigDict()
    config.output_dir = "runs/protein"
    config.model = ConfigDict({"path": model})
    config.task = ConfigDict({"type": "classification"})
    config.adapter = ConfigDict({"method": "bidora", "rank": 8, "alpha": 16.0, "target_modules": ("query", "value")})
    config.data = ConfigDict({"train_file": "train.csv", "val_fraction": 0.2, "max_length": 512, "batch_size": 32})
    adamw = {"schedule": "linear", "warmup": 0.1, "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.1}
    config.inner = ConfigDict({**adamw, "learning_rate": 1e-4})
    config.outer = ConfigDict(adamw)
    config.search = ConfigDict({"epochs": 10.0, "gram_penalty": 1e-5})
    config.retrain = ConfigDict({"epochs": 10.0})
    return config
