"""reporting/competition.py, reporting/competition_charts.py: who wins in the first line, all parts, hostile texts, no request."""

import json
import re
from html.parser import HTMLParser

import pytest
from competed import HOSTILE, competition

from bidora_jax.competitions import outcome, scoring
from bidora_jax.reporting import competition as report

KINDS = [
    ("binary", "f1"),
    ("multiclass", "logloss"),
    ("multilabel", "macro_f1"),
    ("regression", "mcrmse"),
    ("ordinal", "rmse"),
]


def made(kind="binary", metric="f1", leaks=(), **more):
    """The outcome as JSON, as a report gets it."""
    plan, files, results, texts = competition(kind, metric, **more)
    found = outcome.made(plan, files, results, scoring.decide(plan.target, results), texts, list(leaks), 61.5)
    return json.loads(outcome.to_json(found))


class Page(HTMLParser):
    """Elements, attributes and the text outside of style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.said, self.styles, self.open = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open and "title" not in self.open:
            self.said.append(data)
        elif "style" in self.open:
            self.styles.append(data)


@pytest.mark.parametrize(("kind", "metric"), KINDS)
def test_a_page_of_hostile_ids_texts_and_names_runs_and_asks_for_nothing(kind, metric):
    names = (
        {}
        if kind == "ordinal"
        else {"names": (HOSTILE + "0", "<img src=x>", "$\\frac$")[: 2 if kind == "binary" else 3]}
    )
    text = report.render(made(kind, metric, leaks=[HOSTILE], **names))
    page = Page(text)
    assert not {"script", "img", "i", "b", "link", "iframe", "object"} & page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name.rpartition(":")[2] in ("src", "href", "action", "data")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in sources), sources
    styles = [value for name, value in page.attributes if name in ("style", "clip-path", "fill")] + page.styles
    assert not [one for value in styles for one in re.findall(r"url\((?!#)|@import", value)]
    whole = "".join(page.said)
    assert HOSTILE in whole and "hostile <b>&" in whole and "some/<model>" in whole and "a note with <b>" in whole
    for part in ("Warnings", "Scores", "What the test set looks like", "How to submit", "Score by fold", report.WORST[kind],
                 "fold 3", "sd", "--target", "<i>target</i>", "the only column of train that test lacks"):  # fmt: skip
        assert part in whole, part


def test_the_first_line_says_who_wins():
    found = made()
    found["scores"] = {
        "encoder": {"folds": [0.8, 0.9], "mean": 0.85, "sd": 0.07},
        "majority": {"folds": [0.5, 0.6], "mean": 0.55, "sd": 0.07},
        "tf-idf": {"folds": [0.7, 0.95], "mean": 0.825, "sd": 0.2},
        "blend": {"folds": [0.9, 0.9], "mean": 0.9, "sd": 0.0},
    }
    found |= {"winner": "encoder", "weights": {"encoder": 0.75, "majority": 0.0, "tf-idf": 0.25}}
    first = "The encoder wins: its mean F1 over 2 folds is 0.8500 (sd 0.0700), the majority's 0.5500, TF-IDF's 0.8250"
    assert report.verdict(found) == first
    page = "".join(Page(report.render(found)).said).strip()
    assert page.startswith(first)
    assert "The encoder is ahead of TF-IDF in 1 of 2 folds." in page
    assert "submission.csv holds 75% encoder and 25% tf-idf; it reaches 0.9000 out of fold." in page
    found |= {"winner": "tf-idf", "higher_is_better": False, "metric": "logloss"}
    first = "The baseline wins: TF-IDF's mean log loss over 2 folds is 0.8250 (sd 0.2000; less is better)"
    assert report.verdict(found) == f"{first}, the encoder's 0.8500, the majority's 0.5500"
    page = "".join(Page(report.render(found)).said).strip()
    assert page.startswith(first) and "TF-IDF is ahead of the majority in 0 of 2 folds." in page


def test_rows_that_define_no_score_are_said_to():
    found = made("binary", "auc")
    for one in found["scores"].values():
        one |= {"folds": [None] * 3, "mean": None, "sd": 0.0}
    found["winner"] = None
    page = "".join(Page(report.render(found)).said)
    assert page.strip().startswith("No model has a score: the rows of train don't define AUC")
    assert "Score by fold" not in page and "Confusion, out of fold" in page


def test_tables_hold_the_outcomes_numbers():
    found = made("multiclass", "accuracy")
    text = report.render(found)
    for one in found["scores"].values():
        assert all(f"<td>{score:.4f}</td>" in text for score in one["folds"])
    for name, one in found["shares"].items():
        assert f"<td>{name}</td><td>{one['train'][0]:.1%}</td><td>{one['test'][0]:.1%}</td>" in text
    assert len(found["wrong"]) and text.count("<td>text ") + text.count("<td>&lt;script") >= len(found["wrong"])
    assert "kaggle competitions submit -c &#x27;hostile &lt;b&gt;&amp;&#x27; -f submission.csv" in text
    assert "No row of train is in test" in text
    assert "No row of train is in test" not in report.render(found | {"leaks": ["one"]})


def test_values_have_their_quantiles_and_levels_their_confusion_and_their_values():
    found = made("regression", "rmse")
    page = "".join(Page(report.render(found)).said)
    assert "Predicted and true values, out of fold" in page and "three quarters below" in page
    page = "".join(Page(report.render(made("ordinal", "rmse"))).said)
    assert "Confusion, out of fold" in page and "Predicted and true values, out of fold" in page


def test_nothing_wrong_and_nothing_guessed_is_said():
    page = report.render(made() | {"wrong": [], "guesses": [], "notes": []})
    assert "every row is right" in page and "<h2>Notes</h2>" not in page
