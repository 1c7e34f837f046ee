from __future__ import annotations

from dgsgpt.heap import SETTINGS, keep_memory


def test_what_the_user_has_set_stays() -> None:
    environment = {"MALLOC_TOP_PAD_": "4096", "HOME": "/root"}
    keep_memory(environment)
    assert environment == {**SETTINGS, "MALLOC_TOP_PAD_": "4096", "HOME": "/root"}
