"""Histories of runs, written by hand."""

import json

TRICKY = "<script>alert('ä & b')</script>"


def lines(steps: int, phase: str = "search", **more: float) -> list[dict]:
    """The metrics of `steps` steps; `more` stands in each."""
    return [
        {"phase": phase, "step": step, "train_loss": 2 / step, "inner_learning_rate": 1e-3 / step, "tokens": 10,
         "tokens_per_second": 100.0 * step if step > 1 else None, "seconds": 0.5 * step, **more}
        for step in range(1, steps + 1)
    ]  # fmt: skip


def write_run(run):
    """The run folder of a BiDoRA run that was killed while it wrote a line of its second phase."""
    run.mkdir()
    search = lines(12, val_loss=1.5, direction_grad_norm=0.1, hypergrad_norm=0.2, outer_learning_rate=0.5)
    for step, loss in ((4, 0.9), (8, 0.6), (12, 0.7)):
        search[step - 1]["evaluation_loss"] = loss
    retrain = lines(5, "retrain", grad_norm=0.01)
    text = "".join(json.dumps(line) + "\n" for line in search + retrain) + '{"phase": "retrain", "st'
    (run / "metrics.jsonl").write_text(text)
    moved = {"self_attn.q_proj": [0.1, None, 0.2], "mlp.up_proj": [0.0, 0.3, 0.4]}
    changes = [
        {"phase": phase, "step": step, "magnitude": moved, "direction": moved}
        for phase, step in (("search", 0), ("search", 4), ("retrain", 5))
    ]
    samples = [{"phase": "search", "step": step, "samples": [{"prompt": TRICKY, "answer": f"answer {step}", "expected": "x < y"}]}
               for step in (0, 4, 8)]  # fmt: skip
    for name, content in (("changes", changes), ("samples", samples)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    (run / "config.json").write_text(json.dumps({"seed": 7, "adapter": {"rank": 3}, "inner": {"learning_rate": 0.25},
                                                 "model": {"path": "some/model"}}))  # fmt: skip
    facts = {"started": "2026-01-02T03:04:05+00:00", "device": "cpu: cpu", "versions": {"jax": "0.10"}}
    facts["parameters"] = {"frozen": 900, "direction": 80, "magnitude": 20}
    (run / "run.json").write_text(json.dumps(facts))
    return run
