from __future__ import annotations

from dgsgpt.supervise import child_environment
from dgsgpt.threads import wait_politely


def test_a_trainer_gives_its_cores_back_while_it_waits() -> None:
    environment = child_environment()
    assert int(environment["GOMP_SPINCOUNT"]) <= 10_000


def test_what_the_user_chose_stays() -> None:
    chosen = {"GOMP_SPINCOUNT": "5"}
    wait_politely(chosen)
    assert chosen["GOMP_SPINCOUNT"] == "5"
    policy = {"OMP_WAIT_POLICY": "active"}
    wait_politely(policy)
    assert policy == {"OMP_WAIT_POLICY": "active"}
