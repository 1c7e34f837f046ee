"""Playground: picking, sampling, writing, and what is said when that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.generation import divergence
from dgsgpt.generation.presets import PRESETS
from dgsgpt.runs import Run
from dgsgpt.ui.app import ROUTER, page_file
from dgsgpt.ui.playground_prompt import Asked
from dgsgpt.ui.playground_view import Output
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    """A run with two checkpoints that can write."""
    made = make_run(runs_dir, "one", step=20)
    save(made, 10)
    save(made, 20)
    return made


def write(app: AppTest, prompt: str = "ab", tokens: int = 8) -> list[Output]:
    """Generate and return what was written."""
    app.number_input(key="pg_new").set_value(tokens)
    app.text_area(key="pg_prompt").set_value(prompt)
    button(app, "Generate").click().run()
    return list(app.session_state["pg_outputs"])


def told(app: AppTest, index: int = 0) -> dict[str, Any]:
    """What the component of a text was given to draw."""
    protos: list[Any] = [getattr(element, "proto", None) for element in app.main]
    (drawn,) = [p for p in protos if str(getattr(p, "id", "")).endswith(f"-pg_tokens_{index}")]
    return dict(json.loads(drawn.json))


def test_without_checkpoints_one_button_and_one_command(open_page: OpenPage) -> None:
    app = open_page("playground")
    assert labels(app) == ["Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


def test_the_newest_is_picked_and_damaged_ones_are_not_offered(open_page: OpenPage, run: Run, runs_dir: Path) -> None:
    cut = save(run, 30)
    (cut / "model.safetensors").write_bytes(b"cut")
    app = open_page("playground")
    box = app.selectbox(key="pg_a")
    assert box.value == "one@20"
    assert box.options == ["one, step 20", "one, step 10"]


def test_the_address_picks_and_an_unknown_name_is_said(open_page: OpenPage, run: Run) -> None:
    assert open_page("playground", checkpoint="one@10").selectbox(key="pg_a").value == "one@10"
    app = open_page("playground", checkpoint="gone@5")
    assert app.selectbox(key="pg_a").value == "one@20"
    assert "There is no whole checkpoint gone@5" in html_of(app)


def test_picking_another_goes_into_the_address(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    app.selectbox(key="pg_a").set_value("one@10").run()
    assert app.query_params["checkpoint"] in ("one@10", ["one@10"])
    assert app.selectbox(key="pg_a").value == "one@10"


def test_generate_writes_and_tells_how(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    (made,) = write(app, "ab<b> **c**", 8)
    assert made.stats is not None
    assert made.stats.tokens == 8
    shown = html_of(app)
    for part in ("tok/s", "first", "nats/token", "8\u00a0tokens", "as long as asked for", "seed 42"):
        assert part in shown
    assert "<b>" not in shown.replace("ab<b> **c**", "", 1)  # once in the field of the prompt
    assert told(app)["prompt"] == "ab<b> **c**"  # the component shows it as text
    assert "".join(told(app)["texts"]) == made.text
    assert button(app, "Stop").disabled  # nothing is being written any more


def test_the_same_seed_writes_the_same_and_again_takes_the_next(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    first = write(app)[0].text
    assert write(app)[0].text == first
    button(app, "Again, next seed").click().run()
    (again,) = app.session_state["pg_outputs"]
    assert again.stats is not None
    assert again.stats.seed == 43
    assert again.text != first
    assert app.number_input(key="pg_seed").value == 43


def test_after_the_last_seed_comes_the_first(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    app.number_input(key="pg_seed").set_value(2**31 - 1).run()
    button(app, "Again, next seed").click().run()
    assert app.number_input(key="pg_seed").value == 0


def test_presets_set_the_sliders_and_a_moved_slider_leaves_the_preset(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    preset = app.selectbox(key="pg_preset")
    assert preset.value == "balanced"
    preset.set_value("creative").run()
    assert app.slider(key="pg_temp").value == 1.2
    assert app.slider(key="pg_min_p").value == 0.05
    assert app.slider(key="pg_penalty").value == 1.1
    (made,) = write(app)
    assert {name: made.settings[name] for name in PRESETS["creative"]} == PRESETS["creative"]
    app.slider(key="pg_temp").set_value(0.5).run()
    assert app.selectbox(key="pg_preset").value is None


def test_two_write_side_by_side(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground", checkpoint=["one@10", "one@20"])
    a, b = write(app)
    assert (a.ref, b.ref) == ("one@10", "one@20")
    assert a.settings == b.settings
    assert a.stats is not None
    assert b.stats is not None
    at = divergence(a.stats.ids, b.stats.ids)
    assert at is not None
    assert f"same seed, shared noise: first difference at token {at + 1}" in html_of(app)
    assert [told(app, i)["mark"] for i in (0, 1)] == [at, at]
    assert app.number_input(key="pg_samples").disabled


def test_with_other_tokenizers_the_noise_is_not_called_shared(open_page: OpenPage, run: Run) -> None:
    save(run, 30, characters="abc")
    app = open_page("playground", checkpoint=["one@30", "one@20"])
    write(app)
    assert "other tokenizers: the noise is not shared" in html_of(app)
    assert told(app)["mark"] is None


def test_samples_have_the_next_seeds_and_again_takes_those_after(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    app.number_input(key="pg_samples").set_value(3)
    made = write(app)
    assert [output.stats.seed for output in made if output.stats] == [42, 43, 44]
    assert len({output.text for output in made}) == 3
    button(app, "Again, next seed").click().run()
    assert [output.settings["seed"] for output in app.session_state["pg_outputs"]] == [45, 46, 47]


# ---------------------------------------------------------------- token by token
def test_each_token_has_its_alternatives(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    (made,) = write(app)
    assert made.stats is not None
    assert made.choices is not None
    drawn = told(app)
    assert sum(drawn["counts"]) == 8
    assert sum(drawn["nats"]) == pytest.approx(sum(made.stats.nats), abs=1e-3)
    for start, alternatives in zip(drawn["starts"], drawn["alternatives"], strict=True):
        assert [token for token, _ in alternatives] == [token for token, _ in made.choices[start].likeliest]
    assert "click a token for its alternatives" in html_of(app)


def test_a_branch_is_written_and_back_gives_the_text_before(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    (first,) = write(app)
    assert first.stats is not None
    assert first.choices is not None
    token = next(other for other, _ in first.choices[3].likeliest if other != first.stats.ids[3])
    app.session_state["pg_asked"] = Asked("branch", 0, 3, token)  # what a click in the component asks for
    app.run()
    (branched,) = app.session_state["pg_outputs"]
    assert branched.stats.ids[:4] == [*first.stats.ids[:3], token]
    assert len(branched.stats.ids) == 4 + 8
    assert "".join(told(app)["texts"]) == branched.text
    assert told(app)["mark"] == 3
    assert "branched at token 4" in html_of(app)
    button(app, "Back").click().run()
    assert app.session_state["pg_outputs"][0].text == first.text
    assert "Back" not in labels(app)


@pytest.mark.parametrize("asked", [Asked("branch", 0, 99, 1), Asked("branch", 7, 0, 1), Asked("branch", 0, 0, 10**9)])
def test_a_branch_that_cannot_be_changes_nothing(open_page: OpenPage, run: Run, asked: Asked) -> None:
    app = open_page("playground")
    (first,) = write(app)
    app.session_state["pg_asked"] = asked
    app.run()
    assert app.session_state["pg_outputs"][0].text == first.text


def test_a_branch_to_the_end_of_the_text_ends_it(
    open_page: OpenPage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page("playground")
    (first,) = write(app)
    assert first.stats is not None
    assert first.choices is not None
    end = next(other for other, _ in first.choices[3].likeliest if other not in first.stats.ids)
    monkeypatch.setattr(ByteTokenizer, "ends_of_text", (end,))
    app.session_state["pg_asked"] = Asked("branch", 0, 3, end)
    app.run()
    (ended,) = app.session_state["pg_outputs"]
    assert ended.stats.ids == [*first.stats.ids[:3], end]
    assert "the model ended the text" in html_of(app)
    assert len(told(app)["alternatives"]) == len(told(app)["texts"])


def test_continue_appends_and_edit_takes_the_text_as_the_prompt(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    (first,) = write(app)
    button(app, "Continue").click().run()
    (more,) = app.session_state["pg_outputs"]
    assert more.text.startswith(first.text)
    assert len(more.stats.ids) == 16
    button(app, "Edit").click().run()
    assert app.text_area(key="pg_prompt").value == "ab" + more.text


# ---------------------------------------------------------------- prompts


def test_history_gives_a_prompt_back(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    write(app, "first")
    write(app, "second")
    write(app, "first")
    assert app.session_state["pg_history"] == ["first", "second"]


def test_a_prompt_that_does_not_fit_is_cropped_and_said(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    write(app, "x" * 100)
    assert "did not fit the context of 32" in html_of(app)


def test_what_of_a_prompt_is_read_is_said_before_it_is_used(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    for prompt, said in {
        "ab": "2\u00a0tokens of 32",
        "x" * 31: "31\u00a0tokens of 32",
        "x" * 100: "100\u00a0tokens of 32: the last 31 are read, the first 69 are not",
        "": "the byte tokenizer cannot start from nothing; give a character",
    }.items():
        app.text_area(key="pg_prompt").set_value(prompt).run()
        assert said in html_of(app), prompt


def test_a_million_characters_are_cropped_and_neither_counted_nor_shown_whole(open_page: OpenPage, run: Run) -> None:
    app = open_page("playground")
    prompt = "word " * 200_000
    (made,) = write(app, prompt)
    assert made.problem is None
    assert made.stats is not None
    assert made.stats.cropped == 1_000_000 - 31
    assert "more than 50\u202f000\u00a0tokens of 32: the last 31 are read, all before is not" in html_of(app)
    assert len(told(app)["prompt"]) < 3000
    assert len(html_of(app).replace(prompt, "", 1)) < 100_000  # once in its field
    assert write(app, "ab")[0].problem is None


@pytest.mark.parametrize("prompt", ["", "abz"])
def test_a_prompt_that_cannot_be_used_is_one_line(open_page: OpenPage, run: Run, prompt: str) -> None:
    save(run, 30, characters="abc")
    app = open_page("playground")
    (made,) = write(app, prompt)
    assert made.problem
    assert "\n" not in made.problem
    assert made.text == ""
    assert "✕" in html_of(app)
    assert write(app, "ab")[0].problem is None  # the page goes on


def test_a_damaged_checkpoint_is_one_line_and_the_page_stays(open_page: OpenPage, run: Run, runs_dir: Path) -> None:
    flip_a_bit(runs_dir / "one" / "checkpoints" / "step_00000020")
    app = open_page("playground")
    (made,) = write(app)
    assert made.problem is not None
    assert "damaged" in made.problem
    assert str(runs_dir) not in html_of(app)


def test_a_checkpoint_deleted_while_it_is_listed_gives_way(open_page: OpenPage, run: Run, runs_dir: Path) -> None:
    app = open_page("playground", checkpoint="one@20")
    shutil.rmtree(runs_dir / "one" / "checkpoints" / "step_00000020")
    (made,) = write(app)
    assert made.ref == "one@10"
    assert made.problem is None
    shutil.rmtree(runs_dir / "one")
    app.run()
    assert "Start the demo" in labels(app)


def test_a_damaged_tokenizer_is_said_beside_the_prompt(open_page: OpenPage, run: Run, runs_dir: Path) -> None:
    file = runs_dir / "one" / "checkpoints" / "step_00000020" / "tokenizer.json"
    file.write_bytes(b" " * file.stat().st_size)
    assert "✕" in html_of(open_page("playground"))


def test_torch_is_imported_by_the_first_generation_and_not_before(run: Run, runs_dir: Path) -> None:
    code = f"""
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({str(ROUTER)!r}, default_timeout=60).run()
for page in ({str(page_file("checkpoints"))!r}, {str(page_file("playground"))!r}):
    app.switch_page(page).run()
    assert not app.exception, app.exception
    assert "torch" not in sys.modules, page
app.number_input(key="pg_new").set_value(2)
app.button(key="pg_go").click().run()
assert not app.exception, app.exception
assert "torch" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
