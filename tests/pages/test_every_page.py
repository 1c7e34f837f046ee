"""Every page, whatever the folder of runs holds: nothing, one run, many, one that crashed, one that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dgsgpt.metrics import METRICS
from dgsgpt.ui.app import PAGES
from tests import checkpoint_factory
from tests.pages.conftest import OpenPage, html_of
from tests.run_factory import config, make_run

MANY = 24
ERROR = "the trainer was killed by SIGKILL; the system may have run out of memory"


def nothing(root: Path) -> None:
    root.mkdir()


def one(root: Path) -> None:
    checkpoint_factory.save(make_run(root, "only"), 1000)


def many(root: Path) -> None:
    states = ("finished", "stopped", "failed", "lost")
    for i in range(MANY):
        run = make_run(root, f"run-{i:02}", states[i % 4], 100, config=config(moe=i % 2 == 1, seed=i + 1))
        if i == 0:
            checkpoint_factory.save(run, 100)
    make_run(root, "live", "running", 100)


def crashed(root: Path) -> None:
    make_run(root, "bad", "failed", 340, checkpoints=(300,), status={"error": ERROR})


def damaged(root: Path) -> None:
    """What a power cut, a full disk and a careless hand leave: each file of some run is broken in its own way."""
    torn = make_run(root, "torn", "running", 200)
    lines = (torn.path / METRICS).read_bytes()
    (torn.path / METRICS).write_bytes(lines[:-20] + b"\n\0\0\0\nnot json\n" + lines[:40])
    (torn.path / "events.jsonl").write_bytes(b"[]\n{\n\xff\xfe\n")
    for name in ("config.yaml", "run.json", "status.json"):
        broken = make_run(root, f"no-{name.partition('.')[0]}", "stopped", 100, checkpoints=(100,))
        (broken.path / name).write_bytes(b'{"step": [')
    kept = make_run(root, "flipped", step=100)
    checkpoint_factory.flip_a_bit(checkpoint_factory.save(kept, 100))
    (kept.path / "annotations.json").write_text("[", encoding="utf-8")
    (root / "empty").mkdir()
    (root / "queue.json").write_text('{"runs": ["gone", 3]}', encoding="utf-8")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "nothing": nothing, "one": one, "many": many, "crashed": crashed, "damaged": damaged,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, fill in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp(name) / "runs"
        fill(made[name])
    return made


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_page_is_drawn_whatever_the_folder_holds(
    folders: dict[str, Path], open_page: OpenPage, monkeypatch: pytest.MonkeyPatch, folder: str, page: str
) -> None:
    monkeypatch.setenv("DGSGPT_RUNS", str(folders[folder]))
    app = open_page(page)
    shown = html_of(app)
    assert 'aria-level="1"' in shown, "every page has its heading"


def test_a_crashed_run_says_why_wherever_it_is_named(
    folders: dict[str, Path], open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGSGPT_RUNS", str(folders["crashed"]))
    for page in ("train", "runs"):
        assert "killed by SIGKILL" in html_of(open_page(page, run="bad"))


def test_of_damaged_runs_the_whole_lines_are_shown_and_the_rest_is_counted(
    folders: dict[str, Path], open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGSGPT_RUNS", str(folders["damaged"]))
    shown = html_of(open_page("train", run="torn"))
    assert "damaged" in shown
    listed = list(open_page("runs").dataframe[0].value["run"])
    assert set(listed) == {"torn", "no-config", "no-run", "no-status", "flipped"}
