"""The Configure page: bad input, clone and import, the run's name, and the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import launch
from dgsgpt.config import load_config
from dgsgpt.profiles import load_profile
from dgsgpt.runs import list_runs, open_run
from dgsgpt.ui import form, state
from dgsgpt.ui.app import ROUTER, page_file
from tests.pages.configure_page import (
    all_settings,
    bench,
    draft_value,
    machine,
    name_text,
    open_page,
    set_to,
    settled,
    shown,
    start_button,
)
from tests.run_factory import config as tiny_config
from tests.run_factory import make_run

__all__ = ["machine"]  # a fixture that every test here uses


# ---------------------------------------------------------------- bad input
def wrong_heads(at: AppTest) -> None:
    set_to(at, "set_model-n_head", 10)


def wrong_window(at: AppTest) -> None:
    set_to(set_to(at, "t_window", True), "ladder_model-block_size", 64)


def wrong_experts(at: AppTest) -> None:
    set_to(at, "t_moe", True)
    set_to(at, "ladder_model-moe-n_expert", 2)
    set_to(at, "ladder_model-moe-n_expert_per_token", 4)


@pytest.mark.parametrize(
    ("break_it", "words", "label"),
    [
        (wrong_heads, "Heads 10 must divide Width 256", "Use 8"),
        (wrong_window, "Window 128 must not exceed Context 64", "Use 64"),
        (wrong_experts, "Per token 4 must not exceed Experts 2", "Use 2"),
    ],
)
def test_a_broken_rule_is_told_at_its_field_and_its_fix_works(break_it: Any, words: str, label: str) -> None:
    at = open_page()
    break_it(at)
    assert shown(at).count(words) == 1
    assert start_button(at).disabled
    assert "mending" in start_button(at).help
    fix = next(b for b in at.button if label in b.label)
    settled(fix.click().run())
    assert words not in shown(at)
    assert not start_button(at).disabled


def test_a_problem_out_of_sight_is_told_in_the_summary() -> None:
    at = set_to(open_page(), "set_model-n_head", 10)
    set_to(at, "q", "dropout")
    assert "Heads 10 must divide Width 256" in shown(at)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such text"),
        (b"", "the file is empty"),
        (b"\x00\x01\x02" * 999, "is binary"),
        (b"ab\xff" + b"x" * 99, "is not UTF-8"),
        (b"short text\n", "split has"),
    ],
)
def test_an_unusable_text_is_told_at_the_data_field(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    at = name_text(open_page(), str(path))
    assert words in shown(at)
    assert start_button(at).disabled
    set_to(at, "corpus_data-corpus", "plays")
    assert not start_button(at).disabled


def test_an_empty_corpus_offers_the_default() -> None:
    at = name_text(open_page(), "  ")
    assert start_button(at).disabled
    settled(next(b for b in at.button if "Use austen" in b.label).click().run())
    assert draft_value(at, "data.corpus") == "austen"


def test_a_gpu_that_is_not_there_is_told() -> None:
    at = all_settings(open_page())
    set_to(at, "choice_train-device", "cuda")
    assert "needs a GPU" in shown(at)
    assert start_button(at).disabled


# ---------------------------------------------------------------- clone, import
def test_cloning_a_run_begins_with_its_config(runs_dir: Path) -> None:
    make_run(runs_dir, "older", config=tiny_config(moe=True))
    at = set_to(open_page(), "start_source", "older")
    assert bench(at).draft == form.draft_of(tiny_config(moe=True))
    assert bench(at).base_title == "run older"
    assert "No difference from run older" in shown(at)


def test_a_link_can_name_the_run_to_clone(runs_dir: Path) -> None:
    make_run(runs_dir, "older", config=tiny_config())
    at = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    at.switch_page(str(page_file("configure")))
    at.query_params["clone"] = "older"
    settled(at.run())
    assert bench(at).base_title == "run older"
    assert draft_value(set_to(at, "set_train-seed", 4), "train.seed") == 4


def test_yaml_is_taken_over_and_a_wrong_one_changes_nothing() -> None:
    at = set_to(open_page(), "start_source", "yaml")
    before = bench(at).draft
    for wrong, words in (
        ("model: {n_layers: 3}", "did you mean model.n_layer"),
        ("a: [", "pasted YAML"),
        ("", "Nothing to import"),
    ):
        set_to(at, "import_text", wrong)
        settled(at.button(key="import_go").click().run())
        assert words in shown(at)
        assert bench(at).draft == before
    set_to(at, "import_text", "model: {n_layer: 3}\ntrain: {lr: 3e-4}")
    settled(at.button(key="import_go").click().run())
    assert (draft_value(at, "model.n_layer"), draft_value(at, "train.lr")) == (3, 3e-4)


# ---------------------------------------------------------------- name, start
def test_a_bad_or_taken_name_is_told_with_a_free_one(runs_dir: Path) -> None:
    make_run(runs_dir, "taken", config=tiny_config())
    at = set_to(open_page(), "run_name", "../evil name")
    assert start_button(at).disabled
    settled(at.button(key="fix_name").click().run())
    assert bench(at).name == "evil-name"
    assert not start_button(at).disabled
    set_to(at, "run_name", "taken")
    assert "This one will be taken-2" in shown(at)
    assert not start_button(at).disabled


def test_time_is_only_claimed_when_a_run_has_measured_this_machine(runs_dir: Path) -> None:
    assert "measured after the first run" in shown(open_page())
    make_run(runs_dir, "far-too-small", config=tiny_config())
    assert "at the speed of" not in shown(open_page())
    make_run(runs_dir, "measured", config=load_profile("cpu").config)
    at = open_page()
    same_machine = open_run(runs_dir, "measured").facts["hardware"]["name"] == state.machine().name
    assert ("at the speed of measured" in shown(at)) == same_machine


def test_start_creates_the_run_that_the_page_shows(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("dgsgpt.ui.launchpad.start_run", lambda run: started.append(run.id))
    at = set_to(set_to(open_page(), "t_window", True), "run_name", "mine")
    wanted = form.get(bench(at).draft, "model.window.size")
    settled(start_button(at).click().run())
    assert started == ["mine"]
    assert [run.id for run in list_runs(runs_dir)] == ["mine"]
    config = load_config(runs_dir / "mine" / "config.yaml")
    assert config.model.window is not None
    assert config.model.window.size == wanted
    assert config.model.vocab_size == 4096
    assert at.query_params["run"] in ("mine", ["mine"])


def test_a_start_that_fails_is_one_line_and_the_draft_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise launch.RunError("no space left; free some")

    monkeypatch.setattr("dgsgpt.ui.origin.create_run", refuse)
    at = set_to(open_page(), "set_model-n_layer", 5)
    settled(start_button(at).click().run())
    assert "no space left; free some" in shown(at)
    assert draft_value(at, "model.n_layer") == 5


def test_a_char_vocabulary_is_filled_in_before_the_run_starts(
    runs_dir: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgsgpt.ui.launchpad.start_run", lambda run: None)
    at = name_text(open_page(), str(tiny_text))
    set_to(at, "tokenizer_data-tokenizer-kind", ("char", 0))
    settled(start_button(at).click().run())
    (run,) = list_runs(runs_dir)
    assert run.config.model.vocab_size is not None
    assert run.config.model.vocab_size >= len(set(tiny_text.read_text()))
