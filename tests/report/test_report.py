"""The report: one self-contained page with the metrics of the evaluations."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin.cli.main import main
from rerank_plugin.finetune.data.groups import Group
from rerank_plugin.finetune.evaluation.calibration import Calibration
from rerank_plugin.finetune.evaluation.comparison import Comparison
from rerank_plugin.finetune.evaluation.metrics import ScoredQuery, query_metrics
from rerank_plugin.finetune.evaluation.scoring import Evaluation
from rerank_plugin.finetune.report import plots
from rerank_plugin.finetune.report.report import ComparisonReport, shown_fact
from rerank_plugin.finetune.report.verdict import verdict
from rerank_plugin.model.names import distinct_names, short_name
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_model, easy_groups, write_lines

PLOTS = {"training_curves", "differences", "scores", "reliability"}


def evaluation(groups: list[Group], seed: int, gain: float) -> Evaluation:
    random = np.random.default_rng(seed)
    logits = [
        (random.normal(0, 1, len(group.documents)) + gain * np.array(group.labels)).astype("f4")
        for group in groups
    ]
    queries = [ScoredQuery(row, group.labels) for row, group in zip(logits, groups, strict=True)]
    return Evaluation(query_metrics(queries), 0.0, logits)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return [
        Group(f"what is <b>{i}</b> & more?", [f"relevant {i} <script>alert(1)</script>"], ["w"] * 9)
        for i in range(40)
    ]


@pytest.fixture(scope="module")
def folder(groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    compared = comparison(groups)
    ComparisonReport(
        title="A report <of> mine",
        names=("base", "tuned"),
        comparison=compared,
        calibration=Calibration.fit(compared.pairs[1]),
        history=[{"step": 1, "loss": 2.0}, {"step": 1, "ndcg@10": 0.5}],
        kept_step=1,
        facts={"options": {"lr": 2e-4, "note": "<i>", "data": "/home/me/secret/a.jsonl"}},
    ).write(folder)
    return folder


def comparison(groups: list[Group], gains: tuple[float, float] = (0.5, 2.0)) -> Comparison:
    evaluations = evaluation(groups, 0, gains[0]), evaluation(groups, 1, gains[1])
    return Comparison.from_evaluations(groups, ("base", "tuned"), evaluations)


class Page(HTMLParser):
    """The references, tags and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_is_missing_and_nothing_is_fetched(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert {path.stem for path in folder.glob("*.png")} == PLOTS
    assert page.tags.count("svg") == len(PLOTS)
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {"script", "i", "b"} & set(page.tags)
    assert "what is <b>" in page.text and "A report <of> mine" in page.text
    assert "tuned ranks better than base:" in page.text
    assert "/home/me" not in text and "a.jsonl" in page.text
    # The ten queries that gained most, and those that lost.
    assert page.tags.count("details") >= 10
    assert "Expected calibration error" in page.text


def test_the_figures_are_the_evaluations(folder: Path, groups: list[Group]) -> None:
    before, after = comparison(groups).evaluations
    page = Page((folder / "report.html").read_text("utf-8"))
    for name, title in (("ndcg@10", "nDCG@10"), ("map", "MAP")):
        cells = f"{title}{before.means[name]:.4f}{after.means[name]:.4f}"
        assert cells in page.text


#: A page that embeds another one, since a window cannot be as narrow as a telephone. It records
#: the width of the inner page, and how many of its plots are visible.
AROUND = """<iframe width="{width}" height="6000" style="border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const plots = [...page.querySelectorAll("svg")];
  const visible = plots.filter((plot) => plot.getBoundingClientRect().width > 250);
  document.body.dataset.width = page.documentElement.scrollWidth;
  document.body.dataset.visible = visible.length;
}};
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_a_complaint(folder: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium")
    page = html.escape((folder / "report.html").read_text("utf-8"))
    around = tmp_path / "around.html"
    around.write_text(AROUND.format(width=width, page=page), "utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, around.as_uri()], capture_output=True, text=True, check=False)
    assert f'data-width="{width}"' in done.stdout
    assert f'data-visible="{len(PLOTS)}"' in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_verdict_names_the_better_model(groups: list[Group]) -> None:
    names = ("base", "tuned")
    better, worse = comparison(groups, (0.5, 2.0)), comparison(groups, (2.0, 0.5))
    assert verdict(better, names).headline == "tuned ranks better than base:"
    assert verdict(worse, names).headline == "tuned ranks worse than base:"
    same = comparison(groups, (1.0, 1.0))
    assert verdict(same, names).headline == "No significant difference between base and tuned:"
    kept = verdict(same, names, kept_step=0)
    assert kept.headline == "No checkpoint ranked better than base, so tuned contains the base:"


def test_names_of_models_are_short_and_distinct(tmp_path: Path) -> None:
    for name in ("ferry", "bge/model", "models--BAAI--bge-reranker-base/snapshots/0ab1"):
        (tmp_path / name).mkdir(parents=True)
    assert short_name("BAAI/bge-reranker-base") == "BAAI/bge-reranker-base"
    assert short_name(tmp_path / "ferry") == short_name(tmp_path / "later" / "ferry") == "ferry"
    assert short_name(tmp_path / "bge" / "model") == "bge/model"
    snapshot = tmp_path / "models--BAAI--bge-reranker-base" / "snapshots" / "0ab1"
    assert short_name(snapshot) == "BAAI/bge-reranker-base"
    assert distinct_names("a", "a") == ("a (first)", "a (second)")


def test_losses_and_the_metric_have_axes_of_their_own() -> None:
    history = [
        {"step": 0, "eval_loss": 2.4, "ndcg@10": 0.5},
        {"step": 1, "loss": 1.6},
        {"step": 2, "train_seconds": 1.0},
    ]
    curves = plots.training_curves(history, "ndcg@10")
    figure = plots.plot_training(curves, kept_step=0)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Training loss", "Validation loss", "nDCG@10 on validation queries"]
    low, high = figure.axes[-1].get_ylim()
    assert high - low >= 0.1
    assert plots.training_curves(history[2:], "ndcg@10") == {}


def test_facts_have_no_absolute_paths() -> None:
    assert shown_fact(["/data/a.jsonl", "b.jsonl"]) == "a.jsonl, b.jsonl"
    assert shown_fact({"output_dir": "/home/me/out", "steps": 3}) == "output_dir: out, steps: 3"


def test_compare_writes_a_report_and_figures(tmp_path: Path, capsys: Any) -> None:
    models = [build_model(tmp_path / "a"), build_model(tmp_path / "b", hidden_size=64)]
    data = write_lines(tmp_path / "dev.jsonl", easy_groups(30))
    RerankSettings(calibration={"scale": 2.0, "bias": -1.0}).write(models[1])
    output, report = tmp_path / "figures.json", tmp_path / "some" / "report"
    arguments = ["compare", *map(str, models), "--data_path", str(data)]
    arguments += ["--output", str(output), "--report", str(report)]
    assert main(arguments) == 0
    record = json.loads(output.read_text())
    assert (record["baseline"], record["model"]) == tuple(map(str, models))
    difference = record["difference"]
    won, lost = difference["better"]["ndcg@10"], difference["worse"]["ndcg@10"]
    assert won + lost <= 30
    assert 0 < difference["p_value"]["ndcg@10"] <= 1
    page = Page((report / "report.html").read_text("utf-8"))
    assert "b compared with a" in page.text and "30 queries" in page.text
    assert "The calibration that b carries has an expected calibration error of" in page.text
    assert len(record["per_query"]["ndcg@10"]) == 30
    assert main(["compare", str(models[0]), "--data_path", str(data)]) == 2
    assert "expected 2 models" in capsys.readouterr().err
    one = ["evaluate", "--model_dir", str(models[0]), "--data_path", str(data)]
    assert main([*one, "--report", str(report)]) == 2
    assert "--report: requires --baseline" in capsys.readouterr().err
