"""Checkpoints: the table, what can be done with the picked, and everything that can be wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import annotations, files
from dgsgpt.annotations import annotate
from dgsgpt.errors import CheckpointError
from dgsgpt.runs import Run
from dgsgpt.trash import list_trash
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
    """What the page and its dialog show as HTML; code blocks are text and left out."""
    return "\n".join(element.proto.body for element in app.get("html"))


def states(app: AppTest) -> list[str]:
    """The State column of the table."""
    return list(app.dataframe[0].value["state"])


def test_without_checkpoints_one_button_and_one_command(open_page: OpenPage) -> None:
    app = open_page("checkpoints")
    assert labels(app) == ["Import", "Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


def test_while_the_first_run_trains_it_is_named(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "running", 10)
    app = open_page("checkpoints")
    assert labels(app) == ["Import", "Watch it"]
    assert "now saves its first" in html_of(app)


def picked(app: AppTest) -> list[str]:
    """What is picked, A first."""
    return list(app.session_state["ck_picked"])


def more(app: AppTest, choice: str) -> AppTest:
    """Choose from the More menu."""
    return app.menu_button(key="ck_more").click(choice).run()


def test_the_newest_two_are_picked_and_swap_changes_a_and_b(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    assert picked(app) == ["second@400", "first@200"]
    assert app.query_params["checkpoint"] == ["second@400", "first@200"]
    button(app, "Swap").click().run()
    assert picked(app) == ["first@200", "second@400"]
    assert app.query_params["checkpoint"] == ["first@200", "second@400"]


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
    assert states(app)[1] == "damaged"
    assert "first, step 200 is damaged: model.safetensors" in html_of(app)
    assert "No other whole checkpoint" in html_of(app)
    assert button(app, "Open both in Playground").disabled


@pytest.mark.parametrize(
    "lost", ["model.safetensors", "manifest.json", "metadata.json", "config.yaml", "tokenizer.json"]
)
def test_a_damaged_checkpoint_is_said_and_the_page_stays(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path, lost: str
) -> None:
    (runs_dir / "first" / "checkpoints" / "step_00000200" / lost).unlink()
    app = open_page("checkpoints", checkpoint=["first@200", "second@400"])
    assert "damaged" in states(app)
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


def test_open_in_playground_hands_both_over(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints")
    button(app, "Open both in Playground").click().run()
    assert [app.selectbox(key=key).value for key in ("pg_a", "pg_b")] == ["second@400", "first@200"]


# ---------------------------------------------------------------- damage
def test_of_a_damaged_one_the_last_whole_is_offered(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[0], 100)
    (two_runs[0].path / "checkpoints" / "step_00000200" / "model.safetensors").write_bytes(b"cut")
    app = open_page("checkpoints", checkpoint=["second@400", "first@200"])
    assert states(app) == ["whole", "damaged", "whole"]
    button(app, "Open step 100 instead").click().run()
    assert picked(app) == ["second@400", "first@100"]
    assert "is damaged" not in html_of(app)
    assert not button(app, "Open both in Playground").disabled


def test_damaged_words_are_said_beside_what_is_picked(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    (two_runs[0].path / "annotations.json").write_text("{", encoding="utf-8")
    app = open_page("checkpoints", checkpoint="first@200")
    assert "annotations.json: is damaged" in html_of(app)
    button(app, "Star").click().run()  # refused, and nothing of the file is lost
    assert "annotations.json: is damaged" in html_of(app)
    assert (two_runs[0].path / "annotations.json").read_text(encoding="utf-8") == "{"


# ---------------------------------------------------------------- star, words
def test_a_star_is_set_and_taken_away(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = open_page("checkpoints", checkpoint="first@200")
    button(app, "Star").click().run()
    assert list(app.dataframe[0].value["star"]) == ["☆", "★"]
    app.pills(key="ck_filter").set_value("starred").run()
    assert list(app.dataframe[0].value["run"]) == ["first"]
    button(app, "Remove star").click().run()  # with the last star its filter goes
    assert len(app.dataframe[0].value) == 2


def test_name_tags_and_note_are_saved_at_once(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    run = two_runs[0]
    annotate(run, "step_00000200", add_tags=["old"])
    app = more(open_page("checkpoints", checkpoint="first@200"), "Name, tags, note")
    place = "first_step_00000200"
    app.text_input(key=f"ck_say_name_{place}").set_value("My <b>one</b>").run()
    app.multiselect(key=f"ck_say_tags_{place}").set_value(["old", "new"]).run()
    app.text_area(key=f"ck_say_note_{place}").set_value("line one\n![x](http://evil.example/x.png)").run()
    said = annotations.read(run).of("step_00000200")
    assert (said.name, said.tags) == ("My <b>one</b>", ("old", "new"))
    assert "evil.example" in said.note
    assert "<b>one" not in markup_of(app)
    assert list(app.dataframe[0].value["run"])[1] == "My <b>one</b>"
    assert list(list(app.dataframe[0].value["tags"])[1]) == ["best", "old", "new"]


def test_a_name_that_breaks_a_rule_is_said_by_its_field(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = more(open_page("checkpoints", checkpoint="first@200"), "Name, tags, note")
    app.text_input(key="ck_say_name_first_step_00000200").set_value("x" * 81).run()
    assert "81 characters, 80 are allowed" in markup_of(app)
    assert annotations.read(two_runs[0]).of("step_00000200").name == ""
    app.text_area(key="ck_say_note_first_step_00000200").set_value("kept all the same").run()
    assert annotations.read(two_runs[0]).of("step_00000200").note == "kept all the same"


def test_a_run_has_words_of_its_own(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    app = more(open_page("checkpoints", checkpoint="first@200"), "Name, tags, note")
    app.segmented_control(key="ck_say_about").set_value("run").run()
    app.text_input(key="ck_say_name_first_run").set_value("The first").run()
    assert annotations.read(two_runs[0]).run.name == "The first"
    assert list(app.dataframe[0].value["run"]) == ["second", "The first"]


# ---------------------------------------------------------------- delete, undo, trash
def test_deleted_restored_by_undo(open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path) -> None:
    annotate(two_runs[0], "step_00000200", star=True, name="dear")
    app = more(open_page("checkpoints", checkpoint="first@200"), "Delete")
    assert "first, step 200" in markup_of(app)
    button(app, "Move to the trash").click().run()
    assert list(app.dataframe[0].value["run"]) == ["second"]
    assert [item.label for item in list_trash(runs_dir)] == ["first@200"]
    assert "Trash 1" in labels(app)
    button(app, "Undo").click().run()
    assert list(app.dataframe[0].value["run"]) == ["second", "dear"]
    assert picked(app) == ["first@200"]
    assert "Trash 1" not in labels(app)
    assert annotations.read(two_runs[0]).of("step_00000200").star


def test_a_whole_run_can_go_with_its_last_checkpoint(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path
) -> None:
    app = more(open_page("checkpoints", checkpoint="first@200"), "Delete")
    app.toggle(key="ck_delete_runs").set_value(True).run()
    assert any("dgsgpt delete first" in code.value.splitlines() for code in app.code)
    button(app, "Move to the trash").click().run()
    assert not (runs_dir / "first").exists()
    button(app, "Undo").click().run()
    assert picked(app) == ["first@200"]


def test_what_a_live_run_goes_on_from_is_not_deleted(open_page: OpenPage, runs_dir: Path) -> None:
    save(make_run(runs_dir, "now", "running", 200), 100)
    app = more(open_page("checkpoints", checkpoint="now@100"), "Delete")
    assert not app.toggle
    button(app, "Move to the trash").click().run()
    assert "stop now" in markup_of(app)
    assert states(app) == ["whole"]
    button(app, "Cancel").click().run()
    assert "Move to the trash" not in labels(app)


def test_the_trash_restores_and_asks_before_anything_is_gone(
    open_page: OpenPage, two_runs: tuple[Run, Run], runs_dir: Path
) -> None:
    app = more(open_page("checkpoints"), "Delete 2")
    button(app, "Move to the trash").click().run()
    assert "Start the demo" in labels(app)
    button(app, "Trash 2").click().run()
    assert labels(app).count("Restore") == 2
    next(b for b in app.button if b.label == "Restore").click().run()
    assert len(app.dataframe[0].value) == 1
    button(app, "Delete for good").click().run()
    assert len(list_trash(runs_dir)) == 1
    next(b for b in app.button if b.label.startswith("Yes, free")).click().run()
    assert list_trash(runs_dir) == []


# ---------------------------------------------------------------- lineage, Configure
def test_where_it_comes_from_and_what_came_of_it(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    second = two_runs[1]
    files.write_json(
        second.path / "run.json", {**second.facts, "parent": {"run": "first", "step": 200, "kind": "fine-tune"}}
    )
    app = open_page("checkpoints", checkpoint="second@400")
    assert "scratch" in html_of(app)
    button(app, "first, step 200").click().run()
    assert picked(app) == ["first@200"]
    button(app, "second").click().run()
    assert picked(app) == ["second@400"]


def test_an_imported_one_tells_of_itself(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[0], 0, imported={"family": "DGS-GPT", "source": "<i>old.pth", "warnings": ["placeholders <u>"]})
    app = open_page("checkpoints", checkpoint="first@0")
    shown = html_of(app)
    assert "Imported without optimizer state and curve: DGS-GPT model · &lt;i&gt;old.pth" in shown
    assert "placeholders &lt;u&gt;" in shown
    assert "imported" in states(app)
    assert "Go on from here" not in app.menu_button(key="ck_more").options


@pytest.mark.parametrize(("choice", "how"), [("Go on from here", "fork"), ("Train from these weights", "fine-tune")])
def test_configure_is_told_what_to_begin_from(
    open_page: OpenPage, two_runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch, choice: str, how: str
) -> None:
    went: list[tuple[str, Any]] = []
    app = open_page("checkpoints", checkpoint="first@200")
    monkeypatch.setattr("streamlit.switch_page", lambda page, query_params: went.append((page.name, query_params)))
    more(app, choice)
    assert went == [("configure.py", {"base": "first@200", "how": how})]


# ---------------------------------------------------------------- import, export
def test_an_import_that_fails_keeps_what_was_typed(
    open_page: OpenPage, two_runs: tuple[Run, Run], tmp_path: Path
) -> None:
    app = open_page("checkpoints")
    button(app, "Import").click().run()
    assert next(b for b in app.button if b.key == "ck_import_go").disabled
    app.text_input(key="ck_import_path").set_value(str(tmp_path / "none.pth")).run()
    app.text_input(key="ck_import_name").set_value("mine").run()
    next(b for b in app.button if b.key == "ck_import_go").click().run()
    assert "no such file or folder" in markup_of(app)
    assert app.text_input(key="ck_import_path").value == str(tmp_path / "none.pth")
    assert app.text_input(key="ck_import_name").value == "mine"
    assert len(app.dataframe[0].value) == 2


def test_a_checkpoint_folder_is_imported_and_picked(
    open_page: OpenPage, two_runs: tuple[Run, Run], tmp_path: Path
) -> None:
    shutil.copytree(two_runs[0].path / "checkpoints" / "step_00000200", tmp_path / "sent")
    app = open_page("checkpoints")
    button(app, "Import").click().run()
    app.text_input(key="ck_import_path").set_value(str(tmp_path / "sent")).run()
    app.text_input(key="ck_import_name").set_value("from-a-friend").run()
    next(b for b in app.button if b.key == "ck_import_go").click().run()
    assert picked(app) == ["from-a-friend@200"]
    assert "ck_import_go" not in [b.key for b in app.button]


def test_what_the_reader_asks_for_is_asked_below_its_error(
    open_page: OpenPage, two_runs: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, int]] = []

    def read(source: Path, vocab: Path | None, told: dict[str, int], report: Any) -> None:
        given.append(dict(told))
        raise CheckpointError(f"{source}: does not say how many heads it has; give --set n_head=4")

    monkeypatch.setattr("dgsgpt.interop.legacy.read_legacy", read)
    (tmp_path / "bare.pth").write_bytes(b"")
    app = open_page("checkpoints")
    button(app, "Import").click().run()
    app.text_input(key="ck_import_path").set_value(str(tmp_path / "bare.pth")).run()
    next(b for b in app.button if b.key == "ck_import_go").click().run()
    assert "Attention heads (n_head) is asked for" in markup_of(app)
    app.number_input(key="ck_import_n_head").set_value(4).run()
    next(b for b in app.button if b.key == "ck_import_go").click().run()
    assert given == [{}, {"n_head": 4}]


def test_an_export_shows_where_it_is_and_its_commands(
    open_page: OpenPage, two_runs: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write_hf(checkpoint: Path, dest: Path, *, dtype: str, progress: Any) -> Path:
        if dtype == "float32":
            raise CheckpointError(f"{checkpoint}: model.ngram is on, which no such model has")
        progress("weights", 0.5)
        asked.append(dtype)
        dest.mkdir()
        return dest

    monkeypatch.setattr("dgsgpt.interop.hf_export.write_hf", write_hf)
    app = more(open_page("checkpoints", checkpoint="first@200"), "Export for Hugging Face")
    button(app, "Export").click().run()
    assert "model.ngram is on" in markup_of(app)
    app.selectbox(key="ck_export_dtype").set_value("bfloat16").run()
    button(app, "Export").click().run()
    target = tmp_path / "exports" / "first-200"
    assert asked == ["bfloat16"]
    codes = [code.value for code in app.code]
    assert str(target) in codes
    assert any("AutoModelForCausalLM.from_pretrained" in code for code in codes)
    assert any("convert_hf_to_gguf.py" in code for code in codes)


@pytest.mark.parametrize("name", ["../up", "", "a/b", "-x", "x" * 65])
def test_an_export_goes_nowhere_else(open_page: OpenPage, two_runs: tuple[Run, Run], name: str) -> None:
    app = more(open_page("checkpoints", checkpoint="first@200"), "Export for Hugging Face")
    app.text_input(key="ck_export_name_first@200").set_value(name).run()
    assert button(app, "Export").disabled


# ---------------------------------------------------------------- the address
def test_another_address_picks_others(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    save(two_runs[0], 100)
    app = open_page("checkpoints", checkpoint=["first@100", "second@400"])
    assert picked(app) == ["first@100", "second@400"]
    app.query_params["checkpoint"] = ["first@200"]
    app.run()
    assert picked(app) == ["first@200"]


def test_four_at_once_and_what_all_selected_means(open_page: OpenPage, two_runs: tuple[Run, Run]) -> None:
    for step in (10, 20, 30):
        save(two_runs[0], step)
    refs = ["first@10", "first@20", "first@30", "first@200", "second@400"]
    app = open_page("checkpoints", checkpoint=refs)
    assert "5 are selected" in html_of(app)
    assert app.query_params["checkpoint"] == refs[:4]
    assert "Open A and B in Playground" in labels(app)
    assert "Delete 5" in app.menu_button(key="ck_more").options
    assert "Swap" not in labels(app)
