"""Findings of the health monitor as the Train page shows them, and the recipe of a run."""

from __future__ import annotations

from typing import Any

import pytest

from dgsgpt.config import build_config
from dgsgpt.runs import Status
from dgsgpt.ui import groups, health, run_recipe
from dgsgpt.ui.markup import join


def finding(step: int, severity: str | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "health", "step": step, **({"severity": severity} if severity else {}), **more}


def shown(rows: list[Any]) -> str:
    return join(cell for row in rows for cell in row)


def test_findings_are_listed_newest_first_with_their_severity() -> None:
    events = [finding(n, message=f"number {n}") for n in range(9)] + [{"kind": "sample", "step": 99}]
    rows = health.rows(events, 0)
    assert [f"Number {n}" in shown([row]) for row, n in zip(rows, range(8, 2, -1), strict=True)] == [True] * 6
    for severity, glyph in (("error", "✕"), ("warning", "▲"), ("info", "✓"), (None, "▲"), ("unheard of", "▲")):
        assert glyph in shown(health.rows([finding(1, severity)], 0)[:1])


def test_a_finding_without_message_goes_by_its_name() -> None:
    assert "Loss spike" in shown(health.rows([finding(1, name="loss_spike")], 0))
    assert "&lt;b&gt;" in shown(health.rows([finding(1, message="<b>")], 0))


@pytest.mark.parametrize(
    ("message", "expected"),
    [("the loss is not finite", "The loss is not finite"), ("perf/x is not finite", "perf/x is not finite")],
)
def test_a_finding_begins_as_a_sentence_but_for_the_name_of_a_metric(message: str, expected: str) -> None:
    assert health.said(finding(1, message=message)) == expected


@pytest.mark.parametrize(
    ("state", "step", "expected"),
    [("running", 580, True), ("running", 680, True), ("running", 700, False), ("stopped", 580, False)],
)
def test_a_severe_finding_is_on_top_while_it_matters(state: str, step: int, expected: bool) -> None:
    events = [finding(200, "error"), finding(580, "error"), finding(590, "info")]
    found = health.recent_error(events, Status(state, step, 1000))
    assert (found == events[1]) is expected
    assert health.recent_error(events[2:], Status(state, step, 1000)) is None


# ---------------------------------------------------------------- recipe
SETTLED = {"precision": "bf16", "compile": "off", "micro_batch_size": 4, "grad_accum_steps": 4, "why": ["bf16: <fast>"]}


def test_what_auto_chose_is_told_apart_from_what_was_asked_for() -> None:
    config = build_config({"train": {"fit_micro_batch": True, "compile": "on"}})
    told = shown(run_recipe.rows(config, {"settled": {**SETTLED, "compile": "on"}}))
    assert told.count("chosen by auto") == 1
    assert "bf16" in told
    assert "4 × 4 sequences" in told
    assert "fitted" in told
    before = shown(run_recipe.rows(config, {}))
    assert "auto: settled when the run begins" in before
    assert "16 × 1 sequences" in before
    assert "fitted" not in before


@pytest.mark.parametrize("facts", [{}, {"settled": None}, {"settled": [1]}, {"settled": {"why": "text"}}])
def test_facts_that_are_missing_or_damaged_leave_the_config(facts: dict[str, Any]) -> None:
    config = build_config({"train": {"precision": "fp16"}})
    assert "fp16" in shown(run_recipe.rows(config, facts))
    assert run_recipe.reasons(facts) == []


def test_the_ends_of_a_run_are_told() -> None:
    config = build_config({"train": {"steps": 700, "early_stop_evals": 3, "target_loss": 1.5}})
    told = shown(run_recipe.rows(config, {}))
    assert "after 700\u00a0steps, or after 3\u00a0validations without gain, or at a validation loss of 1.5" in told


def test_muon_s_groups_have_their_own_rule_rate_and_decay() -> None:
    config = build_config({"train": {"optimizer": "muon", "muon_lr": 0.03, "lr": 2e-3, "weight_decay": 0.05}})
    rows = {row[1]: row for row in groups.group_rows(config) if row[0] != "Vectors"}
    assert rows["Muon"][2:4] == ("3e-2", "0.05")
    assert rows["AdamW"][2] == "2e-3"
    (vectors,) = [row for row in groups.group_rows(config) if row[0] == "Vectors"]
    assert "none" in str(vectors[3])
