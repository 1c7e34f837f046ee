"""Listing and searching checkpoints, damaged ones included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dgsgpt.config import RunConfig
from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_table as table
from tests.checkpoint_factory import flip_a_bit, save
from tests.run_factory import config, make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "austen-small", step=20)


def test_newest_first_with_one_best_a_run(run: Run) -> None:
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
        save(run, step, loss_val=loss, best=True)
    found = table.entries([run])
    assert [e.step for e in found] == [30, 20, 10]
    assert [e.best for e in found] == [False, True, False]
    assert [e.ref for e in table.choose(found, "best", "", {})] == ["austen-small@20"]


def test_damaged_ones_are_listed_and_left_out_of_the_whole(run: Run) -> None:
    save(run, 10)
    cut = save(run, 20)
    (cut / "model.safetensors").write_bytes(b"short")
    found = table.entries([run])
    assert [table.state_word(e, None).split(":")[0] for e in found] == ["damaged", "whole"]
    assert [e.step for e in table.whole(found)] == [10]


@pytest.mark.parametrize(
    "metadata",
    [
        {"step": "x", "params": "many", "saved_at": None, "recent_losses": "none", "loss_val": [1]},
        {"step": True, "params": 10**400, "recent_losses": [None, "a", 1.0], "bytes": "big", "device": 5},
        {"loss_val": True, "recent_losses": {}, "tokenizer_kind": None, "whole_split_eval": 3},
    ],
)
def test_nonsense_in_metadata_is_shown_as_missing(run: Run, metadata: dict[str, object]) -> None:
    path = save(run, 10)
    (path / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    (entry,) = table.entries([run])
    shown = table.frame([entry], {})
    assert entry.step == 10
    assert math.isnan(shown["val"][0])
    assert math.isnan(shown["params"][0])
    assert entry.text("device") == "–"


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("", True),
        ("AUSTEN", True),
        ("plays", False),
        ("n_layer=2", True),
        ("model.n_layer=2", True),
        ("n_layer=3", False),
        ("n_layer=", False),
        ("lr=1e-3", True),
        ("moe=off", True),
        ("moe=on", False),
        ("rope=on", True),
        ("corpus=austen small", True),
        ("corpus=austen large", False),
        ("=", False),
        ("n_layr=2", False),
    ],
)
def test_search_by_name_and_setting(run: Run, query: str, fits: bool) -> None:
    save(run, 10)
    (entry,) = table.entries([run])
    assert table.matches(entry, query, config(lr=1e-3)) is fits


def test_a_run_whose_config_is_damaged_matches_no_setting(run: Run) -> None:
    save(run, 10)
    (entry,) = table.entries([run])
    assert not table.matches(entry, "n_layer=2", None)
    assert table.matches(entry, "austen", None)


def test_a_mistyped_setting_names_the_nearest() -> None:
    assert table.unknown_setting("austen n_layer=2") is None
    assert "model.n_layer" in str(table.unknown_setting("n_layr=2"))


@pytest.mark.parametrize(
    ("actual", "written", "same"),
    [(None, "null", True), (False, "off", True), (True, "on", True), (1, "true", False), (0, "off", False),
     (6e-4, "0.0006", True), (12, "12.0", True), ("bpe", "bpe", True), (12, "twelve", False)],
)  # fmt: skip
def test_values_as_people_write_them(actual: object, written: str, same: bool) -> None:
    assert table.same_value(actual, written) is same


def test_every_setting_can_be_searched_by_its_value(run: Run) -> None:
    from dgsgpt.rules import flatten

    save(run, 10)
    (entry,) = table.entries([run])
    settings: RunConfig = config()
    for path, value in flatten(settings.model_dump()).items():
        written = "off" if value in (None, False) and not isinstance(value, int | float) else str(value)
        if " " not in written:
            assert table.matches(entry, f"{path}={written}", settings), path


# ---------------------------------------------------------------- verification
def test_verification_finds_a_flipped_bit_that_sizes_cannot_show(run: Run) -> None:
    path = save(run, 10)
    flip_a_bit(path)
    (entry,) = table.entries([run])
    assert table.state_word(entry, None) == "whole"
    verdict = table.check(entry)
    assert table.state_word(entry, verdict).startswith("damaged: model.safetensors")
    assert str(path) not in table.state_word(entry, verdict)


def test_verified_holds_until_the_checkpoint_is_saved_anew(run: Run) -> None:
    path = save(run, 10)
    (entry,) = table.entries([run])
    verdict = table.check(entry)
    assert table.state_word(entry, verdict) == "verified"
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n", encoding="utf-8")
    assert table.state_word(entry, verdict) == "whole"


def test_names_in_addresses_find_their_entry(run: Run) -> None:
    save(run, 10)
    save(run, 20)
    found = table.entries([run])
    for ref, step in (("austen-small@10", 10), ("austen-small", 20)):
        entry = table.by_ref(found, ref)
        assert entry is not None
        assert entry.step == step
    for ref in ("austen-small@99", "../../etc", "", None):
        assert table.by_ref(found, ref) is None
