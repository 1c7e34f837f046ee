"""Checkpoints: the table, one in full, two side by side, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.runs import Run
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, make_run


@pytest.fixture
def two_runs(runs_dir: Path) -> tuple[Run, Run]:
    """Two runs of different settings with a checkpoint each, `second` the newer."""
    first = make_run(runs_dir, "first", step=200)
    second = make_run(runs_dir, "second", step=400, config=config(moe=True))
    save(first, 200, loss_val=2.9, bpb_val=2.0)
    save(second, 400, loss_val=2.4, bpb_val=1.7)
    return first, second


def markup_of(app: AppTest) -> str:
    """What the page shows as HTML; code blocks are text and left out."""
    return "\n".join(element.proto.body for element in app.get("html"))


def states(app: AppTest) -> list[str]:
    """The State column of the table."""
    return list(app.dataframe[0].value["state"])


def test_without_checkpoints_one_button_and_one_command(open_page: OpenPage) -> None:
    app = open_page("checkpoints")
    assert labels(app) == ["Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


def test_while_the_first_run_trains_it_is_named(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "running", 10)
    app = open_page("checkpoints")
    assert labels(app) == ["Watch it"]
    assert "now saves its first" in html_of(app)


def test_the_newest_two_are_compared(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    shown = html_of(app)
    assert shown.index("second") < shown.index("first")
    for part in (
        "2.4000",
        "2.9000",
        "−0.5000",
        "−0.3000",
        "model.moe.n_expert",
        "Same validation tokens",
        "may be chance",
    ):
        assert part in shown
    (chart,) = app.get("plotly_chart")
    names = [trace["name"] for trace in json.loads(chart.proto.spec)["data"]]
    assert names == ["A second", "B first"]
    assert "better" not in shown.replace("Lower is better", "")


def test_swap_changes_a_and_b(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    button(app, "Swap").click().run()
    assert "+0.5000" in html_of(app)


def test_axis_changes_the_curves(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    app.segmented_control(key="ck_axis").set_value("FLOPs").run()
    assert "training FLOPs" in app.get("plotly_chart")[0].proto.spec
    assert "FLOPs, the most both have" in html_of(app)


def test_other_tokenizer_compares_bits_per_byte_only(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[1], 500, characters="abc", loss_val=1.0, bpb_val=1.5, data_fingerprint="e" * 64)
    app = open_page("checkpoints", checkpoint=["second@500", "first@200"])
    shown = html_of(app)
    assert "a loss per token cannot be compared" in shown
    assert "−0.5000" in shown  # bits per byte
    assert "−1.9000" not in shown
    assert app.get("plotly_chart")[0].proto.alt == "Bits per byte of A and B"


def test_one_named_in_the_address_is_shown_in_full(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints", checkpoint="first@200")
    shown = html_of(app)
    for part in ("Val loss", "2.9000", "Perplexity", "12.3k",
                 "f" * 12, "cpu: test", "1e-3"):  # fmt: skip
        assert part in shown
    assert "Swap" not in labels(app)
    assert any("n_layer: 2" in block.value for block in app.code)
    assert any('"corpus": "austen"' in block.value for block in app.code)


def test_filter_and_search(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[0], 100, loss_val=3.5)
    app = open_page("checkpoints")
    assert len(app.dataframe[0].value) == 3
    app.pills(key="ck_filter").set_value("best").run()
    assert list(app.dataframe[0].value["step"]) == [400, 200]
    app.text_input(key="ck_query").set_value("moe=on").run()
    assert list(app.dataframe[0].value["run"]) == ["second"]
    app.text_input(key="ck_query").set_value("n_layr=2").run()
    assert not app.dataframe
    assert "did you mean model.n_layer" in html_of(app)


def test_verify_hashes_every_byte(open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path) -> None:
    flip_a_bit(runs_dir / "first" / "checkpoints" / "step_00000200")
    app = open_page("checkpoints")
    assert states(app) == ["whole", "whole"]
    button(app, "Verify").click().run()
    assert states(app)[0] == "verified"
    assert states(app)[1].startswith("damaged: model.safetensors")
    assert "first, step 200 is damaged" in html_of(app)


@pytest.mark.parametrize(
    "lost", ["model.safetensors", "manifest.json", "metadata.json", "config.yaml", "tokenizer.json"]
)
def test_a_damaged_checkpoint_is_said_and_the_page_stays(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path, lost: str
) -> None:
    (runs_dir / "first" / "checkpoints" / "step_00000200" / lost).unlink()
    app = open_page("checkpoints", checkpoint=["first@200", "second@400"])
    assert any(word.startswith("damaged") for word in states(app))
    assert "is damaged" in html_of(app)
    assert button(app, "Open both in Playground").disabled


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"step": "<b>", "recent_losses": {"a": 1}, "git": 5, "parent": [1]}']
)
def test_damaged_metadata_never_breaks_the_page(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path, text: str
) -> None:
    (runs_dir / "first" / "checkpoints" / "step_00000200" / "metadata.json").write_text(text, encoding="utf-8")
    app = open_page("checkpoints", checkpoint="first@200")
    assert len(app.dataframe[0].value) == 2
    assert "<b>" not in markup_of(app)


def test_a_run_without_readable_config_is_still_listed(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path
) -> None:
    (runs_dir / "first" / "config.yaml").write_text("model: [", encoding="utf-8")
    app = open_page("checkpoints")
    assert len(app.dataframe[0].value) == 2
    app.text_input(key="ck_query").set_value("n_layer=2").run()
    assert list(app.dataframe[0].value["run"]) == ["second"]


def test_names_are_text(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[1], 500, device="<img src=x onerror=alert(1)>", corpus="<script>")
    shown = markup_of(open_page("checkpoints", checkpoint="second@500"))
    assert "<img src=x" not in shown
    assert "<script>" not in shown
    assert "&lt;img src=x" in shown


def test_a_checkpoint_deleted_meanwhile_leaves_the_list(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path
) -> None:
    app = open_page("checkpoints")
    shutil.rmtree(runs_dir / "second" / "checkpoints" / "step_00000400")
    app.run()
    assert list(app.dataframe[0].value["run"]) == ["first"]
    shutil.rmtree(runs_dir / "first")
    app.run()
    assert "Start the demo" in labels(app)


def test_a_thousand_unknown_names_in_the_address_do_nothing(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints", checkpoint=["../../etc/passwd", "x@y"] * 500)
    assert len(app.dataframe[0].value) == 2


def test_both_write_from_the_same_prompt_and_seed(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    app.text_input(key="ck_prompt").set_value("ab<b>").run()
    button(app, "Write with both").click().run()
    a, b = (app.session_state["ck_outputs"][ref] for ref in ("second@400", "first@200"))
    assert a.settings == b.settings
    assert a.stats.tokens == b.stats.tokens == 96
    shown = html_of(app)
    assert "ab&lt;b&gt;" in shown
    assert shown.count("seed 42") >= 2


def test_open_in_playground_hands_both_over(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    button(app, "Open both in Playground").click().run()
    assert [box.value for box in app.selectbox] == ["second@400", "first@200"]
