"""Reports: one file that is whole in itself, with the figures of the run and nothing of it as markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dgsgpt.annotations import annotate
from dgsgpt.cli import main
from dgsgpt.curves import ema, smoothing_for
from dgsgpt.errors import RunError
from dgsgpt.metrics import MetricsWriter, read_metrics
from dgsgpt.report import build_report, figures
from dgsgpt.report.gather import gather
from dgsgpt.runs import Run
from tests.run_factory import config, log_steps, make_run

ATTACK = "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png'>"


class Reader(HTMLParser):
    """Collects tags, attributes that could load something, and the text outside of scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1] not in ("script", "style"):
            self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.fixture
def runs(runs_dir: Path) -> list[Run]:
    made = [
        make_run(runs_dir, "dense", config=config(lr=1e-3), checkpoints=(500, 1000)),
        make_run(runs_dir, "moe", config=config(moe=True, lr=3e-4), step=600),
    ]
    annotate(made[0], name="Dense one", add_tags=["paper"], note="for the talk")
    return made


def test_a_report_loads_nothing_and_holds_its_own_plotly(runs: list[Run]) -> None:
    page = read(build_report(runs))
    assert page.links == []
    assert page.tags.count("script") == 2
    assert not {"link", "img", "iframe", "form", "object"} & set(page.tags)


def test_a_report_tells_config_results_samples_and_environment(runs: list[Run]) -> None:
    frame = read_metrics(runs[0].path)
    text = read(build_report(runs[:1])).text
    for told in ("Dense one", "paper", "for the talk", "a truth of step 200", "n_layer: 2", "torch", "Seed"):
        assert told in text
    assert f"{frame['loss/val'].min():.4f}" in text
    assert f"{frame['loss/train'].iloc[-1]:.4f}" in text


def test_runs_are_compared_by_the_settings_in_which_they_differ(runs: list[Run]) -> None:
    text = read(build_report(runs)).text
    assert "2 runs compared" in text
    assert "train.lr" in text
    assert "model.moe.n_expert" in text
    assert "model.n_layer" not in text.replace("n_layer: 2", "")


def test_the_curves_are_those_of_the_metrics(runs: list[Run]) -> None:
    told = gather(runs[0])
    drawn = json.loads(figures.losses([told])[0])["data"]
    frame = read_metrics(runs[0].path)
    raw = frame["loss/train"].to_numpy()
    assert drawn[0]["x"] == frame["step"].tolist()
    assert np.allclose(drawn[0]["y"], raw, rtol=1e-5)
    assert np.allclose(drawn[1]["y"], ema(raw, smoothing_for(len(raw))), rtol=1e-5)


def test_a_long_run_is_thinned_with_its_spike_and_says_so(runs_dir: Path) -> None:
    run = make_run(runs_dir, "long", step=10)
    log_steps(run, 11, 9000, every=1)
    writer = MetricsWriter(run.path)
    writer.log(9001, {"loss/train": 50.0})
    chart, caption = figures.losses([gather(run)])
    raw = json.loads(chart)["data"][0]
    assert len(raw["x"]) <= figures.POINTS
    assert max(raw["y"]) == 50.0
    assert re.search(r"points of training, .* drawn, extremes kept", caption.replace("\u00a0", " "))


def test_nothing_of_a_run_is_markup(runs: list[Run]) -> None:
    plain = read(build_report(runs)).tags
    annotate(runs[0], name=ATTACK[:80], note=ATTACK)
    MetricsWriter(runs[0].path).event("sample", 900, prompt=ATTACK, text=f"</script>{ATTACK}", seed=1)
    MetricsWriter(runs[0].path).event("health", 900, name="spike", message=ATTACK)
    html = build_report(runs)
    attacked = read(html)
    extra = set(attacked.tags) - set(plain)
    assert extra <= {"p", "details", "summary"}
    assert attacked.tags.count("script") == plain.count("script")
    assert attacked.links == []
    assert ATTACK in attacked.text


def test_a_run_with_nothing_measured_and_a_damaged_config_is_reported(runs_dir: Path) -> None:
    run = make_run(runs_dir, "bad", "failed", 10, status={"error": "killed"})
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss/train": null}\nnot json\n', encoding="utf-8")
    (run.path / "config.yaml").write_text("model: [", encoding="utf-8")
    text = read(build_report([Run(run.path)])).text
    assert "config.yaml" in text
    assert "killed" in text
    assert math.isnan(read_metrics(run.path)["loss/train"].iloc[0])


def test_no_run_and_too_many_are_refused(runs: list[Run]) -> None:
    for some in ([], runs[:1] * 21):
        with pytest.raises(RunError, match="give 1 to 20"):
            build_report(some)


def test_the_command_writes_one_file_and_replaces_none(runs: list[Run], tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    done = CliRunner().invoke(main, ["report", "dense", "moe", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"path": str(out), "runs": ["dense", "moe"], "bytes": out.stat().st_size}
    again = CliRunner().invoke(main, ["report", "dense", "--out", str(out)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert CliRunner().invoke(main, ["report", "dense", "--out", str(out), "--force"]).exit_code == 0
    nowhere = CliRunner().invoke(main, ["report", "dense", "--out", str(tmp_path / "no" / "r.html")])
    assert nowhere.exit_code == 2
