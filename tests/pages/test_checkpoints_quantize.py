"""Quantizing from the Checkpoints page: measured first, kept under a name, then an entry like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import checkpoint as ck
from dgsgpt.evaluation import validation_text
from dgsgpt.runs import Run, list_runs
from dgsgpt.ui import quantize_view
from tests.checkpoint_factory import save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.pages.test_checkpoints import markup_of, more
from tests.run_factory import make_run

pytest.importorskip("torchao")


@pytest.fixture
def dialog(open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The open dialog of an untrained model's only checkpoint."""
    save(make_run(runs_dir, "first", step=200), 200, loss_val=2.9, bpb_val=2.0)
    short = validation_text("austen", 0.1)[:5000]
    monkeypatch.setattr("dgsgpt.evaluation.texts.validation_text", lambda corpus, fraction: short)
    return more(open_page("checkpoints", checkpoint="first@200"), "Quantize")


def test_it_is_measured_kept_and_picked(dialog: AppTest, runs_dir: Path) -> None:
    app = dialog
    assert "dgsgpt quantize first@200 first-int8 --bits 8" in [code.value for code in app.code]
    assert "Keep it" not in labels(app)
    app.segmented_control(key="ck_quantize_kind").set_value("int4").run()
    app.selectbox(key="ck_quantize_group_int4").set_value(64).run()
    button(app, "Measure").click().run()
    shown = markup_of(app)
    for expected in ("Bits per byte", "Weights on disk", "Tokens a second", "token embedding", "before", "int4"):
        assert expected in shown
    assert [run.id for run in list_runs(runs_dir)] == ["first"]
    app.text_input(key="ck_quantize_name_first@200_int4").set_value("first").run()
    assert button(app, "Keep it").disabled
    assert "first is there already" in markup_of(app)
    app.text_input(key="ck_quantize_name_first@200_int4").set_value("small").run()
    assert "dgsgpt quantize first@200 small --bits 4 --group-size 64" in [code.value for code in app.code]
    button(app, "Keep it").click().run()
    path = Run(runs_dir / "small").checkpoints()[0]
    assert ck.load_checkpoint(path).metadata["quantization"]["judged"]["text"] == "austen, validation split"
    assert list(app.dataframe[0].value["run"]) == ["small", "first"]
    assert list(next(iter(app.dataframe[0].value["tags"]))) == ["int4"]
    assert app.query_params["checkpoint"] == "small@200"
    shown = html_of(app)
    assert "not to train or export" in shown
    assert "Weights by layer" not in shown
    assert "Rounded weights" in shown
    assert "norms and biases" in shown
    assert list(app.menu_button(key="ck_more").options) == ["Name, tags, note", "Delete"]


def test_what_is_discarded_leaves_nothing(dialog: AppTest, runs_dir: Path) -> None:
    button(dialog, "Measure").click().run()
    button(dialog, "Discard").click().run()
    assert "Measure" not in [b.label for b in dialog.button if b.key == "ck_quantize_measure"]
    assert [run.id for run in list_runs(runs_dir)] == ["first"]


def test_what_is_wrong_is_said_in_the_dialog(dialog: AppTest, runs_dir: Path) -> None:
    path = Run(runs_dir / "first").checkpoints()[0]
    (path / ck.MODEL).write_bytes(b"x" * (path / ck.MODEL).stat().st_size)
    button(dialog, "Measure").click().run()
    assert "Nothing was kept." in markup_of(dialog)
    assert "is damaged" in markup_of(dialog)
    assert "Keep it" not in labels(dialog)


def test_without_torchao_the_command_that_installs_it_is_shown(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_run(runs_dir, "first", step=200), 200)
    monkeypatch.setattr(quantize_view, "find_spec", lambda name: None)
    app = more(open_page("checkpoints", checkpoint="first@200"), "Quantize")
    assert quantize_view.INSTALL in markup_of(app).replace("&quot;", '"').replace("&#34;", '"')
    (measure,) = [b for b in app.button if b.key == "ck_quantize_measure"]
    assert measure.disabled


def test_damaged_metadata_of_a_quantized_one_never_break_the_page(open_page: OpenPage, runs_dir: Path) -> None:
    told = {
        "quantized": "<b>int9</b>",
        "quantization": {"judged": {"bpb": {"full": "x"}, "tokens_per_s": {"device": 3}}},
    }
    save(make_run(runs_dir, "first", step=200), 200, **told)
    app = open_page("checkpoints", checkpoint="first@200")
    assert "<b>int9" not in markup_of(app)
    assert "not measured" in markup_of(app)


def test_configure_says_that_a_quantized_one_cannot_be_trained(open_page: OpenPage, runs_dir: Path) -> None:
    parent = {"run": "other", "step": 100, "kind": "quantize"}
    save(make_run(runs_dir, "first", step=200), 200, quantized="int8", parent=parent)
    app = open_page("configure", base="first@200", how="fine-tune")
    assert "cannot be trained; take other@100, its origin" in markup_of(app)
