"""Opened checkpoints are shared without ever being freed under someone's hands."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.runs import Run
from dgsgpt.ui import engines
from tests.checkpoint_factory import flip_a_bit, save
from tests.run_factory import make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "one", step=20)


def engine() -> engines.Engine:
    return engines.Engine(SimpleNamespace(), "cpu")  # type: ignore[arg-type]


# ---------------------------------------------------------------- life of an engine
def test_who_has_entered_keeps_the_model_when_the_cache_lets_go() -> None:
    one = engine()
    assert one.enter()
    assert one.enter()
    one.evict()
    assert one.checkpoint is not None
    assert not one.enter()  # nobody new
    one.leave()
    assert one.checkpoint is not None
    one.leave()
    with pytest.raises(AssertionError):
        _ = one.checkpoint


def test_an_unused_model_is_freed_at_once_and_once() -> None:
    one = engine()
    one.evict()
    one.evict()
    assert not one.enter()
    with pytest.raises(AssertionError):
        _ = one.checkpoint


def test_one_generation_at_a_time_and_the_waiting_one_can_be_stopped() -> None:
    class Stopped(BaseException):
        pass

    one, asked = engine(), []

    def waiting() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Stopped

    with one.turn(lambda: None):
        with pytest.raises(Stopped), one.turn(waiting):
            pytest.fail("two had the turn")
        assert len(asked) == 2
    with one.turn(lambda: pytest.fail("nobody has it any more")):
        pass


def test_an_exception_in_a_turn_gives_it_back() -> None:
    one = engine()
    with pytest.raises(KeyError), one.turn(lambda: None):
        raise KeyError
    with one.turn(lambda: pytest.fail("the turn was not given back")):
        pass


# ---------------------------------------------------------------- opening
def test_an_opened_checkpoint_is_opened_once(run: Run) -> None:
    path = save(run, 10)
    with engines.opened(path) as first, engines.opened(path) as second:
        assert first is second
        assert first.checkpoint.path == path


def test_a_checkpoint_saved_anew_is_opened_anew(run: Run) -> None:
    path = save(run, 10)
    with engines.opened(path) as first:
        pass
    shutil.rmtree(path)
    save(run, 10, loss_val=1.0)
    with engines.opened(path) as second:
        assert second is not first
        assert second.checkpoint.metadata["loss_val"] == 1.0


def test_a_session_that_waits_is_not_left_with_a_closed_model(run: Run) -> None:
    """More checkpoints than fit are opened while one is in use: it stays usable, and later it is opened anew."""
    paths = [save(run, step) for step in range(1, engines.MAX_OPEN + 3)]
    with engines.opened(paths[0]) as kept:
        for path in paths[1:]:
            with engines.opened(path):
                pass
        assert kept.checkpoint.model is not None
        with engines.opened(paths[0]) as again:
            assert again is not kept
            assert again.checkpoint.path == paths[0]
    with pytest.raises(AssertionError):
        _ = kept.checkpoint


def test_many_sessions_at_once_never_meet_a_closed_model(run: Run) -> None:
    paths = [save(run, step) for step in range(1, engines.MAX_OPEN + 2)]
    failures: list[BaseException] = []

    def session(order: list[Path]) -> None:
        try:
            for path in order:
                with engines.opened(path) as one, one.turn(lambda: None):
                    assert one.checkpoint.path == path
        except BaseException as error:  # noqa: BLE001 - reported by the test below
            failures.append(error)

    orders = [paths, paths[::-1], paths[1:] + paths[:1]]
    threads = [threading.Thread(target=session, args=(order * 2,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


@pytest.mark.parametrize("how", ["deleted", "bit flipped", "no weights", "no manifest"])
def test_a_bad_checkpoint_is_a_one_line_error(run: Run, how: str) -> None:
    path = save(run, 10)
    if how == "deleted":
        shutil.rmtree(path)
    elif how == "bit flipped":
        flip_a_bit(path)
    else:
        (path / ("manifest.json" if how == "no manifest" else "model.safetensors")).unlink()
    with pytest.raises(DgsgptError) as caught, engines.opened(path):
        pytest.fail("it was opened")
    assert "\n" not in str(caught.value)
    with pytest.raises(DgsgptError), engines.opened(path):  # the failure was not kept as a result
        pytest.fail("it was opened")


def test_damage_after_opening_is_noticed_at_the_next_opening(run: Run) -> None:
    path = save(run, 10)
    with engines.opened(path):
        pass
    flip_a_bit(path)
    with pytest.raises(CheckpointError, match="damaged"), engines.opened(path):
        pytest.fail("it was opened")


# ---------------------------------------------------------------- device and tokenizer
def machine(*free: int) -> Any:
    gpus = tuple(SimpleNamespace(free_bytes=f) for f in free)
    return SimpleNamespace(gpus=gpus, free_bytes=free[0] if free else 1 << 40)


def test_without_a_gpu_or_room_on_it_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines.hardware, "detect", machine)
    assert engines.choose_device(1) == "cpu"
    monkeypatch.setattr(engines.hardware, "detect", lambda: machine(3 << 30))
    assert engines.choose_device(2 << 30) == "cpu"
    assert engines.choose_device(1 << 29) == "cuda"


def test_the_tokenizer_needs_no_torch(run: Run) -> None:
    path = save(run, 10)
    code = (
        "import sys; from pathlib import Path; from dgsgpt.ui import engines; "
        f"assert engines.tokenizer(Path({str(path)!r})).encode('ab') == [97, 98]; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_tokenizer_is_a_one_line_error(run: Run) -> None:
    path = save(run, 10)
    (path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(DgsgptError) as caught:
        engines.tokenizer(path)
    assert "\n" not in str(caught.value)
