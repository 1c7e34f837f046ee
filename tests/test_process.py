from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from dgsgpt import process


@pytest.fixture
def sleeper():
    child = subprocess.Popen(
        [sys.executable, "-c", "import time, sys; print('up', flush=True); time.sleep(60)", "token-1"],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()


def test_a_living_process_is_recognised_by_all_its_marks(sleeper) -> None:
    identity = process.identify(sleeper.pid, "token-1")
    assert process.is_alive(identity)


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "other"}, {"token": "token-2"}, {"pid": None}])
def test_a_stranger_is_never_taken_for_it(sleeper, change: dict) -> None:
    identity = {**process.identify(sleeper.pid, "token-1"), **change}
    assert not process.is_alive(identity)
    assert not process.send(identity, signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_zombie_does_not_run(sleeper) -> None:
    identity = process.identify(sleeper.pid)
    sleeper.kill()  # not waited for: it stays a zombie
    deadline = time.monotonic() + 5
    while process.is_alive(identity) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive(identity)


def test_nothing_known_is_not_alive() -> None:
    assert not process.is_alive(None)
    assert not process.is_alive({})
