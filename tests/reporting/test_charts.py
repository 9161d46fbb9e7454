"""reporting/charts.py, reporting/style.py: what a drawing shows of a history."""

import json
import re

import numpy as np
import pytest
from histories import lines

from bidora_jax.reporting import charts, history, style
from bidora_jax.reporting.history import History
from bidora_jax.runs import report


def test_the_colours_of_the_drawings_are_the_pages(killed):
    drawn = "".join(re.findall(r"<svg.*?</svg>", (killed / "report" / "report.html").read_text(), re.DOTALL))
    assert "var(--blue)" in drawn and "var(--sans)" in drawn
    assert not any(colour in drawn for colour in style.LIGHT.values())
    assert style.LIGHT.keys() == style.DARK.keys()


def test_a_run_of_one_step_and_one_level_has_the_pictures_it_has_something_for(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"phase": "search", "step": 1, "train_loss": 0.5, "tokens": 3}) + "\n"
    )
    made = charts.all_charts(history.read(tmp_path))
    assert list(made) == ["loss", "learning_rate"]
    assert report.write(tmp_path, tmp_path / "report")["validation_loss"] is None


def test_curves_count_steps_over_phases_and_leave_out_what_is_not_there():
    past = History(lines(3) + lines(2, "retrain", grad_norm=9.0))
    curve = past.curve("grad_norm", "train_loss")
    assert (curve.steps.tolist(), curve.values.tolist()) == ([1, 2, 3, 4, 5], [2, 1, 2 / 3, 9, 9])
    assert past.curve("tokens_per_second").steps.tolist() == [2, 3, 5]
    assert past.starts == {"search": 0, "retrain": 3}


def test_a_long_curve_is_drawn_as_the_band_of_four_fifths_of_its_values():
    past = [{"phase": "search", "step": step, "train_loss": float(step % 10)} for step in range(1, 2001)]
    axes = charts.narrow_charts(History(past))["loss"][1].axes[0]
    (band,) = axes.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.9, 8.1))  # of 0 to 9, ten values in each of 200 parts
    assert len(charts.narrow_charts(History(past[:600]))["loss"][1].axes[0].collections) == 0


@pytest.mark.parametrize(("count", "reach"), [(1, 1), (2, 3), (17, 3)])
def test_smoothing_is_the_weighted_mean_of_what_is_there(count, reach):
    values = np.random.default_rng(0).normal(size=count)
    expected = []
    for centre in range(count):
        near = [(reach + 1 - abs(centre - at), values[at]) for at in range(count) if abs(centre - at) <= reach]
        expected.append(sum(weight * value for weight, value in near) / sum(weight for weight, _ in near))
    np.testing.assert_allclose(history.smoothed(values, reach), expected, rtol=1e-12)
