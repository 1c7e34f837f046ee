from __future__ import annotations

from dgsgpt.threads import wait_politely


def test_threads_give_their_core_back_after_a_short_spin() -> None:
    environment: dict[str, str] = {}
    wait_politely(environment)
    assert int(environment["GOMP_SPINCOUNT"]) <= 10_000


def test_what_the_user_chose_stays() -> None:
    chosen = {"GOMP_SPINCOUNT": "5"}
    wait_politely(chosen)
    assert chosen["GOMP_SPINCOUNT"] == "5"
    policy = {"OMP_WAIT_POLICY": "active"}
    wait_politely(policy)
    assert policy == {"OMP_WAIT_POLICY": "active"}
