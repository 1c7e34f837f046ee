"""Evaluate: picking, what it costs, figures that are those of the command, what is kept, and what cannot be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import files
from dgsgpt import format as fmt
from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.data.prepare import prepare
from dgsgpt.evaluation import evaluate_text, kept
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run
from dgsgpt.ui.app import ROUTER, page_file
from dgsgpt.ui.evaluate_run import PASTED, UPLOAD, Done
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import make_run

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 12


@pytest.fixture
def run(runs_dir: Path) -> Run:
    """A run with two checkpoints that can be judged."""
    made = make_run(runs_dir, "one", step=20)
    save(made, 10)
    save(made, 20)
    return made


def paste(app: AppTest, text: str = TEXT) -> AppTest:
    app.selectbox(key="ev_text").set_value(PASTED).run()
    return app.text_area(key="ev_pasted").set_value(text).run()


def evaluate(app: AppTest, text: str = TEXT) -> Done | str:
    """Judge a pasted text; what the session has of it."""
    button(paste(app, text), "Evaluate").click().run()
    (found,) = app.session_state["ev_results"].values()
    return found


def test_without_checkpoints_one_button_and_one_command(open_page: OpenPage) -> None:
    app = open_page("evaluate")
    assert labels(app) == ["Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


def test_damaged_checkpoints_are_not_offered(open_page: OpenPage, runs_dir: Path, run: Run) -> None:
    for step in (10, 20):
        (run.path / "checkpoints" / f"step_{step:08d}" / "model.safetensors").write_bytes(b"cut")
        app = open_page("evaluate")
    assert labels(app) == ["Start the demo"]
    assert "No checkpoint is whole" in html_of(app)


def test_the_address_picks_and_stays_in_step(open_page: OpenPage, run: Run) -> None:
    app = open_page("evaluate", checkpoint="one@10")
    box = app.selectbox(key="ev_checkpoint")
    assert box.value == "one@10"
    assert box.options == ["one, step 20", "one, step 10"]
    box.set_value("one@20").run()
    assert app.query_params["checkpoint"] in ("one@20", ["one@20"])
    assert app.selectbox(key="ev_checkpoint").value == "one@20"
    app = open_page("evaluate", checkpoint="gone@5")
    assert app.selectbox(key="ev_checkpoint").value == "one@20"
    assert "There is no whole checkpoint gone@5" in html_of(app)


@pytest.mark.parametrize(("part", "stride"), [(1, 32), (4, 8), (0, 1)])
def test_the_figures_are_those_of_evaluate_text(open_page: OpenPage, run: Run, part: int, stride: int) -> None:
    app = open_page("evaluate", checkpoint="one@20")
    app.selectbox(key="ev_part").set_value(part).run()
    done = evaluate(app)
    assert isinstance(done, Done)
    opened = load_checkpoint(run.path / "checkpoints" / "step_00000020")
    wanted = evaluate_text(opened.model, opened.tokenizer, TEXT, stride=stride)
    assert done.report.evaluation.bpb == pytest.approx(wanted.bpb, abs=1e-12)
    assert (done.report.evaluation.tokens, done.report.stride) == (wanted.tokens, stride)
    shown = html_of(app)
    assert f"{wanted.bpb:.4f}" in shown
    assert f"stride {stride}" in shown
    assert done.report.text_sha256 in shown
    words = f"dgsgpt eval one@20 --text FILE{f' --stride {stride}' if stride < 32 else ''}"
    assert [c.value for c in app.code] == [words]
    assert button(app, "Evaluate").disabled  # it would find the same


def test_a_result_is_kept_with_the_run_and_listed(open_page: OpenPage, run: Run) -> None:
    app = open_page("evaluate")
    assert "Nothing is kept yet" in html_of(app)
    done = evaluate(app)
    assert isinstance(done, Done)
    (one,), damaged = kept.read(run)
    assert (one.step, one.text_name, damaged) == (20, "pasted text", 0)
    assert one.bpb == done.report.evaluation.bpb
    assert one.record["command"] == ["dgsgpt", "eval", "one@20", "--text", "FILE"]
    shown = html_of(app)
    assert f"sha {done.report.text_sha256[:8]}" in shown
    assert ">this</span>" in shown
    app.selectbox(key="ev_checkpoint").set_value("one@10").run()
    assert ">this</span>" not in html_of(app)


def test_a_part_of_a_text_is_kept_with_its_command(open_page: OpenPage, run: Run) -> None:
    app = open_page("evaluate")
    app.selectbox(key="ev_most").set_value(5_000).run()
    done = evaluate(app)
    assert isinstance(done, Done)
    (one,), _ = kept.read(run)
    assert one.record["max_tokens"] == 5_000
    assert one.record["command"][-2:] == ["--max-tokens", "5000"]


def test_kept_results_compare_across_tokenizers_and_damaged_lines_are_told(
    open_page: OpenPage, run: Run, runs_dir: Path
) -> None:
    other = make_run(runs_dir, "two", step=20)
    save(other, 30, characters="".join(sorted(set(TEXT))))
    evaluate(open_page("evaluate", checkpoint="one@20"))
    evaluate(open_page("evaluate", checkpoint="two@30"))
    with (run.path / kept.FILE).open("a") as f:
        f.write("{torn\n" + json.dumps({"format_version": 99}) + "\n")
    shown = html_of(open_page("evaluate"))
    assert shown.count("pasted text") == 1  # one text, two rows
    bits = {name: kept.read(each)[0][0].bpb or 0 for name, each in (("one, step 20", run), ("two, step 30", other))}
    first, second = sorted(bits, key=bits.__getitem__)
    assert shown.index(f">{first}<") < shown.index(f">{second}<")
    assert "2\u00a0damaged lines left out" in shown


def test_an_imported_checkpoint_has_no_text_of_its_own(open_page: OpenPage, run: Run) -> None:
    save(run, 40, imported={"family": "llama", "source": "x", "sha256": "0" * 64, "warnings": []})
    app = open_page("evaluate", checkpoint="one@40")
    offered = app.selectbox(key="ev_text").options
    assert [text for text in offered if "prepared" not in text] == [  # other tests may have prepared some
        "Validation text of austen", "Validation text of plays", "Upload a file…", "Pasted text",
    ]  # fmt: skip
    assert [c.value for c in app.code] == ["dgsgpt eval one@40 --corpus austen"]
    assert isinstance(evaluate(app), Done)


def test_an_uploaded_text_is_judged_whole(open_page: OpenPage, run: Run, datasets_dir: Path) -> None:
    file = datasets_dir / "uploads" / "letters.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TEXT, encoding="utf-8")
    app = open_page("evaluate")
    app.selectbox(key="ev_text").set_value(str(file)).run()
    assert "about 1k forward tokens for 1k judged" in html_of(app)
    button(app, "Evaluate").click().run()
    (done,) = app.session_state["ev_results"].values()
    assert done.report.text_bytes == len(TEXT)
    assert app.code[0].value == f"dgsgpt eval one@20 --text {file}"


def upload(app: AppTest, name: str, content: bytes) -> AppTest:
    app.selectbox(key="ev_text").set_value(UPLOAD).run()
    return app.file_uploader(key="ev_upload").upload(name, content, "text/plain").run()


def test_a_file_that_is_uploaded_here_is_picked_and_judged(open_page: OpenPage, run: Run, datasets_dir: Path) -> None:
    app = open_page("evaluate")
    app.selectbox(key="ev_text").set_value(UPLOAD).run()
    assert button(app, "Evaluate").disabled
    app = upload(app, "my letters.txt", TEXT.encode())
    assert app.selectbox(key="ev_text").value == str(datasets_dir / "uploads" / "my-letters.txt")
    button(app, "Evaluate").click().run()
    (done,) = app.session_state["ev_results"].values()
    assert done.report.text_bytes == len(TEXT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b" \n", "the text is empty"), (b"\0\1\2" * 99, "binary"), (b"aaaa", "one distinct character"),
        (b"an \xe9t\xe9", "UTF-8"),
    ],
    ids=["empty", "binary", "one character", "latin-1"],
)  # fmt: skip
def test_a_file_that_cannot_be_judged_is_one_line(
    open_page: OpenPage, run: Run, datasets_dir: Path, content: bytes, said: str
) -> None:
    shown = html_of(upload(open_page("evaluate"), "letters<b>.txt", content))
    (problem,) = re.findall(r"✕ (letters.*)</div>", shown)
    assert said in problem
    assert "letters&lt;b&gt;.txt: " in problem
    assert not list((datasets_dir / "uploads").glob("letters-b-*"))


def test_a_file_over_the_limit_is_refused_by_the_server_too(
    open_page: OpenPage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgsgpt.ui.evaluate_form.MAX_UPLOAD_MB", 1)
    shown = html_of(upload(open_page("evaluate"), "a.txt", b"some text\n" * 110_000))
    assert "1.0\u00a0MiB is more than 1 MiB; use the command with its path" in shown


def test_what_the_trainer_found_stands_beside_what_was_asked_for(
    open_page: OpenPage, run: Run, datasets_dir: Path
) -> None:
    dataset = prepare(run.config.data, 32)
    facts = {
        "dataset": dataset.id,
        "fingerprint": dataset.fingerprint,
        "tokenizer_sha256": dataset.meta["tokenizer_sha256"],
    }
    files.write_json(run.path / "run.json", {**run.facts, "data": facts})
    figures = {"loss": 2.5, "ppl": 12.2, "tokens": 4, "bytes": 9, "context": 32, "stride": 32}
    for step, whole, bpb in ((10, False, 2.0101), (15, False, 1.9101), (20, False, 1.8101), (20, True, 1.8202)):
        MetricsWriter(run.path).event("eval", step, whole_split=whole, bpb=bpb, **figures)
    app = open_page("evaluate")
    shown = html_of(app)
    kept_card, training = shown.split("While training")
    assert [kept_card.count(bits) for bits in ("2.0101", "1.9101", "1.8101", "1.8202")] == [1, 0, 1, 1]  # saved ones
    assert kept_card.count(">this, auto<") == 2
    assert f"at most {fmt.number(run.config.train.eval_tokens)} tokens" in kept_card
    for told in ("1.8101", "1.8202", ">20<"):
        assert told in training
    plot = json.loads(app.get("plotly_chart")[-1].proto.spec)
    assert [trace["mode"] for trace in plot["data"]] == ["lines+markers", "markers"]
    assert plot["data"][0]["customdata"][0][0] == "2.0101"


def test_a_run_without_automatic_evaluations_says_how_to_have_them(open_page: OpenPage, run: Run) -> None:
    assert "train.eval_every=100" in html_of(open_page("evaluate"))


def test_the_cost_is_said_with_a_time_only_when_a_speed_was_measured(open_page: OpenPage, run: Run) -> None:
    app = paste(open_page("evaluate"))
    assert "at the speed of" not in html_of(app)
    assert "forward tokens" in html_of(app)
    button(app, "Evaluate").click().run()
    paste(app, TEXT * 2)
    assert "at the speed of the last evaluation" in html_of(app)


def test_passages_are_text_and_control_characters_are_seen(open_page: OpenPage, run: Run) -> None:
    app = open_page("evaluate")
    evaluate(app, ("<b>bold</b> \x07 and \u202e **more**\n" * 30))
    shown = html_of(app)
    assert "&lt;b&gt;bold&lt;/b&gt; ␇ and \\u202e **more**⏎" in shown
    assert "<b>bold" not in shown.replace(app.text_area(key="ev_pasted").value or "", "")  # but in the field itself


@pytest.mark.parametrize(
    ("text", "part"), [("a", "at least 2 are needed"), ("abz", "does not know")], ids=["too short", "unknown character"]
)
def test_what_cannot_be_judged_is_one_line(open_page: OpenPage, run: Run, text: str, part: str) -> None:
    save(run, 30, characters="abc")
    app = open_page("evaluate", checkpoint="one@30")
    problem = evaluate(app, text)
    assert isinstance(problem, str)
    assert "\n" not in problem
    assert f"✕ {problem}" in html_of(app).replace("&#x27;", "'")
    assert not kept.read(run)[0]
    button(paste(app, "abcabc" * 9), "Evaluate").click().run()  # the page goes on
    assert "Bits per byte" in html_of(app)


def test_an_empty_text_cannot_be_asked_for(open_page: OpenPage, run: Run) -> None:
    assert button(paste(open_page("evaluate"), " \n"), "Evaluate").disabled


def test_damaged_weights_are_one_line_without_a_path(open_page: OpenPage, run: Run, runs_dir: Path) -> None:
    flip_a_bit(run.path / "checkpoints" / "step_00000020")
    app = open_page("evaluate")
    problem = evaluate(app)
    assert isinstance(problem, str)
    assert "damaged" in problem
    assert str(runs_dir) not in html_of(app)


def test_a_damaged_tokenizer_is_said_beside_the_button(open_page: OpenPage, run: Run) -> None:
    file = run.path / "checkpoints" / "step_00000020" / "tokenizer.json"
    file.write_bytes(b" " * file.stat().st_size)
    assert "✕" in html_of(open_page("evaluate"))


def test_a_result_that_cannot_be_kept_is_shown_and_said(open_page: OpenPage, run: Run) -> None:
    (run.path / kept.FILE).mkdir()  # a folder where the file would be
    done = evaluate(open_page("evaluate"))
    assert isinstance(done, Done)
    assert "cannot be kept" in done.warning


def test_torch_is_imported_by_the_first_evaluation_and_not_before(run: Run) -> None:
    code = f"""
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({str(ROUTER)!r}, default_timeout=60).run()
app.switch_page({str(page_file("evaluate"))!r}).run()
assert not app.exception, app.exception
assert "torch" not in sys.modules
app.selectbox(key="ev_text").set_value({PASTED!r}).run()
app.text_area(key="ev_pasted").set_value("abcd" * 50).run()
assert "torch" not in sys.modules
app.button(key="ev_go").click().run()
assert not app.exception, app.exception
assert "torch" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
