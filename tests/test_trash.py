"""The trash: one rename each, nothing lost wherever it is interrupted, nothing that is needed can be deleted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from dgsgpt import checkpoint as ck
from dgsgpt import files, trash
from dgsgpt.annotations import FILE, Annotation, annotate, read
from dgsgpt.errors import RunError
from dgsgpt.runs import Run, list_runs
from tests.checkpoint_factory import save
from tests.run_factory import make_run, write_status

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
NAMES = {10: "step_00000010", 20: "step_00000020"}


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "a", step=20, checkpoints=(10, 20))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def steps(runs_dir: Path) -> list[tuple[str, int]]:
    return sorted((c.run_id, c.step) for c in ck.list_checkpoints(runs_dir))


# ---------------------------------------------------------------- there and back
def test_a_checkpoint_goes_and_comes_back_with_what_was_said_of_it(run: Run, runs_dir: Path) -> None:
    said = annotate(run, NAMES[10], star=True, note="why")
    before = contents(run.path / "checkpoints")
    item = trash.move_to_trash(runs_dir, run, NAMES[10])
    assert steps(runs_dir) == [("a", 20)]
    assert not read(run).of(NAMES[10]), "the next checkpoint of this step is another one"
    assert trash.list_trash(runs_dir) == [item]
    assert (item.label, item.step, item.said) == ("a@10", 10, said)
    assert item.bytes == files.directory_bytes(item.content) > 0
    facts = json.loads((item.path / trash.FACTS).read_text())
    assert facts["from"] == f"a/checkpoints/{NAMES[10]}"
    assert trash.restore(runs_dir, item) == run.path / "checkpoints" / NAMES[10]
    assert contents(run.path / "checkpoints") == before
    assert read(run).of(NAMES[10]) == said
    assert trash.list_trash(runs_dir) == []


def test_a_run_goes_and_comes_back_whole(run: Run, runs_dir: Path) -> None:
    annotate(run, None, name="mine")
    before = contents(run.path)
    item = trash.move_to_trash(runs_dir, run)
    assert list_runs(runs_dir) == []
    assert ck.list_checkpoints(runs_dir) == []
    assert (item.label, item.step, item.said) == ("a", None, Annotation(name="mine"))
    assert trash.restore(runs_dir, "a") == run.path
    assert contents(run.path) == before


def test_the_latest_of_a_name_is_meant(run: Run, runs_dir: Path) -> None:
    first = trash.move_to_trash(runs_dir, run)
    second = trash.move_to_trash(runs_dir, make_run(runs_dir, "a", step=20))
    assert first.id != second.id
    assert {i.id for i in trash.list_trash(runs_dir)} == {first.id, second.id}
    assert trash.find_item(runs_dir, "a").trashed_at == second.trashed_at
    assert trash.find_item(runs_dir, first.id) == first


def test_a_checkpoint_that_still_opens_after_the_journey(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a", step=20)
    path = save(run, 10)
    before = {file.name: ck.hash_file(file) for file in path.iterdir()}
    item = trash.move_to_trash(runs_dir, run, path.name)
    assert not path.exists()
    trash.restore(runs_dir, item)
    ck.verify(path)
    assert {file.name: ck.hash_file(file) for file in path.iterdir()} == before


# ---------------------------------------------------------------- refused
def test_a_live_run_cannot_be_deleted(run: Run, runs_dir: Path) -> None:
    write_status(run, "running", 20)
    with pytest.raises(RunError, match=r"run 'a' is running; `dgsgpt stop a` first"):
        trash.move_to_trash(runs_dir, run)
    assert steps(runs_dir) == [("a", 10), ("a", 20)]
    assert trash.list_trash(runs_dir) == []


def test_of_a_live_run_only_the_newest_whole_checkpoint_is_held(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a", step=40)
    paths = {step: save(run, step) for step in (10, 20, 30)}
    (paths[30] / ck.MODEL).unlink()
    write_status(run, "running", 40)
    with pytest.raises(RunError, match=r"step_00000020 is the newest whole checkpoint of a run that is running"):
        trash.move_to_trash(runs_dir, run, paths[20].name)
    trash.move_to_trash(runs_dir, run, paths[30].name)
    trash.move_to_trash(runs_dir, run, paths[10].name)
    assert steps(runs_dir) == [("a", 20)]


@pytest.mark.parametrize("name", [".supervisor.lock", ".trainer.lock"])
def test_a_process_that_has_not_yet_said_so_holds_its_run(run: Run, runs_dir: Path, name: str) -> None:
    code = f"import filelock, sys; l = filelock.FileLock({str(run.path / name)!r}); l.acquire(); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(RunError, match="is being worked on"):
            trash.move_to_trash(runs_dir, run)
        holder.kill()
    trash.move_to_trash(runs_dir, run)
    assert list_runs(runs_dir) == []


def test_what_is_not_below_the_root_is_left_alone(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not in"):
        trash.move_to_trash(tmp_path / "elsewhere", run)
    assert run.path.is_dir()


@pytest.mark.parametrize("name", ["step_00000030", "..", "../../b", "step_1/..", ""])
def test_a_name_that_is_none_is_refused(run: Run, runs_dir: Path, name: str) -> None:
    with pytest.raises(RunError):
        trash.move_to_trash(runs_dir, run, name)
    assert steps(runs_dir) == [("a", 10), ("a", 20)]


def test_a_link_is_not_followed(run: Run, runs_dir: Path, tmp_path: Path) -> None:
    real = run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(real)
    with pytest.raises(RunError, match="is a link"):
        trash.move_to_trash(runs_dir, run)
    assert (real / "config.yaml").is_file()


def test_a_restore_onto_a_taken_name_is_refused(run: Run, runs_dir: Path) -> None:
    part = trash.move_to_trash(runs_dir, run, NAMES[10])
    again = run.path / "checkpoints" / NAMES[10]
    again.mkdir()
    with pytest.raises(RunError, match="is there"):
        trash.restore(runs_dir, part)
    again.rmdir()
    whole = trash.move_to_trash(runs_dir, run)
    with pytest.raises(RunError, match=f"it is in the trash: `dgsgpt restore {whole.id}` first"):
        trash.restore(runs_dir, part)
    make_run(runs_dir, "a", step=20)
    with pytest.raises(RunError, match="is there"):
        trash.restore(runs_dir, whole)
    with pytest.raises(RunError, match="is another run than the one"):
        trash.restore(runs_dir, part)
    assert {i.id for i in trash.list_trash(runs_dir)} == {part.id, whole.id}


@pytest.mark.parametrize(
    "facts", ["{", "{}", '{"run": "../x"}', '{"run": "a", "checkpoint": "../x"}', '{"run": "a", "checkpoint": 5}']
)
def test_a_damaged_item_is_listed_and_never_leads_elsewhere(run: Run, runs_dir: Path, facts: str) -> None:
    item = trash.move_to_trash(runs_dir, run)
    (item.path / trash.FACTS).write_text(facts)
    (found,) = trash.list_trash(runs_dir)
    assert found.problem
    assert found.bytes > 0
    with pytest.raises(RunError, match="by hand"):
        trash.restore(runs_dir, found)
    assert (item.content / "config.yaml").is_file()


def test_odd_figures_in_an_item_do_no_harm(run: Run, runs_dir: Path) -> None:
    item = trash.move_to_trash(runs_dir, run)
    facts = json.loads((item.path / trash.FACTS).read_text())
    files.write_json(item.path / trash.FACTS, {**facts, "trashed_at": "x", "bytes": None, "annotation": {"star": 5}})
    assert trash.restore(runs_dir, item.id) == run.path


def test_damaged_words_do_not_keep_a_checkpoint_from_the_trash(run: Run, runs_dir: Path) -> None:
    (run.path / FILE).write_text("{")
    item = trash.move_to_trash(runs_dir, run, NAMES[10])
    assert (run.path / FILE).read_text() == "{"
    trash.restore(runs_dir, item)
    assert steps(runs_dir) == [("a", 10), ("a", 20)]


# ---------------------------------------------------------------- interrupted
def kill_at(call: int, action: Callable[[], object]) -> bool:
    """Do `action` in a process that kills itself before its n-th change of a directory; whether it came to its end."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        return code == 0
    try:
        left = [call]

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def change(*args: object, **options: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return change

        changes = [(Path, "mkdir"), (Path, "rename"), (Path, "replace"), (files, "fsync_directory")]
        for owner, name in (*changes, (shutil, "rmtree"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, deadly(getattr(owner, name)))
        action()
        os._exit(0)
    finally:
        os._exit(1)


@needs_fork
@pytest.mark.parametrize("name", [None, NAMES[10]])
def test_killed_at_any_moment_it_is_in_its_place_or_in_the_trash(run: Run, runs_dir: Path, name: str | None) -> None:
    said = annotate(run, name, star=True, note="kept")
    place = run.path if name is None else run.path / "checkpoints" / name
    whole = {k: v for k, v in contents(place).items() if k != FILE}
    for call in range(100):
        came_through = kill_at(call, lambda: trash.move_to_trash(runs_dir, run, name))
        for back in range(100):
            items = trash.list_trash(runs_dir)
            assert place.is_dir() != (len(items) == 1), "never both, never neither"
            found = contents(place if place.is_dir() else items[0].content)
            assert {k: v for k, v in found.items() if k != FILE} == whole
            if place.is_dir():
                break
            kill_at(back, partial(trash.restore, runs_dir, items[0]))
        assert read(run).of(name) == said
        if came_through:
            break
    else:
        pytest.fail("it never came to its end")
    assert call > 3


@needs_fork
def test_deleting_for_good_may_be_interrupted(run: Run, runs_dir: Path) -> None:
    for call in range(100):
        if not trash.list_trash(runs_dir):
            left = Run(runs_dir / "a") if (runs_dir / "a").exists() else make_run(runs_dir, "a", step=20)
            trash.move_to_trash(runs_dir, left)
        came_through = kill_at(call, lambda: trash.empty(runs_dir))
        for item in trash.list_trash(runs_dir):
            assert (item.content / "config.yaml").is_file(), "what is listed is whole"
        if came_through:
            break
    trash.empty(runs_dir)
    assert [p.name for p in (runs_dir / trash.FOLDER).iterdir()] == [".lock"]


def test_the_rest_of_an_interrupted_move_is_no_item_and_is_cleared_away(run: Run, runs_dir: Path) -> None:
    rest = runs_dir / trash.FOLDER / "20260101T000000Z-a"
    rest.mkdir(parents=True)
    files.write_json(rest / trash.FACTS, {"run": "a"})
    assert trash.list_trash(runs_dir) == []
    trash.move_to_trash(runs_dir, run, NAMES[10])
    assert not rest.exists()


@pytest.mark.parametrize("step", ["mkdir", "facts", "rename", "words"])
def test_a_disk_that_refuses_leaves_it_in_its_place(
    run: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    annotate(run, NAMES[10], star=True)
    before = contents(run.path)
    real: Callable[..., None] = files.write_json

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        if path.name == {"facts": trash.FACTS, "words": FILE}.get(step):
            raise OSError(28, "No space left on device")
        real(path, *args, **kwargs)

    def refuse_rename(self: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(files, "write_json", refuse)
    if step == "rename":
        monkeypatch.setattr(Path, "rename", refuse_rename)
    if step == "mkdir":
        (runs_dir / trash.FOLDER).write_text("a file")
    with pytest.raises(RunError) as caught:
        trash.move_to_trash(runs_dir, run, NAMES[10])
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert contents(run.path) == before
    assert trash.list_trash(runs_dir) == []


# ---------------------------------------------------------------- for good
def test_emptying_frees_what_was_chosen(run: Run, runs_dir: Path) -> None:
    one = trash.move_to_trash(runs_dir, run, NAMES[10])
    two = trash.move_to_trash(runs_dir, run, NAMES[20])
    assert trash.empty(runs_dir, [one]) == one.bytes
    assert trash.list_trash(runs_dir) == [two]
    assert trash.empty(runs_dir) == two.bytes
    assert trash.list_trash(runs_dir) == []
    assert trash.empty(runs_dir) == 0
    with pytest.raises(RunError, match="no item"):
        trash.empty(runs_dir, [one])


def test_what_a_fork_shares_is_not_freed(run: Run, runs_dir: Path, tmp_path: Path) -> None:
    weights = next(p for p in (run.path / "checkpoints" / NAMES[10]).iterdir() if p.is_file())
    (tmp_path / "fork").hardlink_to(weights)
    shared, item = weights.stat().st_size, trash.move_to_trash(runs_dir, run, NAMES[10])
    assert shared > 0
    assert trash.empty(runs_dir, [item]) == item.bytes - shared


def test_there_is_no_trash_until_something_is_deleted(runs_dir: Path) -> None:
    assert trash.list_trash(runs_dir) == []
    assert trash.empty(runs_dir) == 0
    assert not runs_dir.exists()
    with pytest.raises(RunError, match="it is empty"):
        trash.restore(runs_dir, "a")


def test_one_change_of_the_trash_at_a_time(run: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash, "LOCK_TIMEOUT_S", 0.05)
    (runs_dir / trash.FOLDER).mkdir()
    with FileLock(runs_dir / trash.FOLDER / ".lock"), pytest.raises(RunError, match="by another process"):
        trash.move_to_trash(runs_dir, run)
    assert run.path.is_dir()
    assert [p.name for p in (runs_dir / trash.FOLDER).iterdir()] == [".lock"]
