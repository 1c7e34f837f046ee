"""Listing and searching checkpoints, damaged ones included."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dgsgpt import files
from dgsgpt.annotations import Annotation, annotate
from dgsgpt.config import RunConfig
from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_list as listing
from dgsgpt.ui import checkpoint_search as search
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.checkpoint_list import Entry, Verdict
from tests.checkpoint_factory import flip_a_bit, save
from tests.run_factory import config, make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "austen-small", step=20)


def test_newest_first_with_one_best_a_run(run: Run) -> None:
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
        save(run, step, loss_val=loss, best=True)
    found = listing.entries([run])
    assert [e.step for e in found] == [30, 20, 10]
    assert [e.best for e in found] == [False, True, False]
    assert [e.ref for e in search.choose(found, "best", "", {}, time.time())] == ["austen-small@20"]


def test_damaged_ones_are_listed_and_left_out_of_the_whole(run: Run) -> None:
    save(run, 10)
    cut = save(run, 20)
    (cut / "model.safetensors").write_bytes(b"short")
    found = listing.entries([run])
    assert [listing.state_word(e, {}) for e in found] == ["damaged", "whole"]
    assert [e.step for e in listing.whole(found)] == [10]


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
    (entry,) = listing.entries([run])
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
    (entry,) = listing.entries([run])
    assert search.matches(entry, query, config(lr=1e-3)) is fits


def test_a_run_whose_config_is_damaged_matches_no_setting(run: Run) -> None:
    save(run, 10)
    (entry,) = listing.entries([run])
    assert not search.matches(entry, "n_layer=2", None)
    assert search.matches(entry, "austen", None)


def test_a_mistyped_setting_names_the_nearest() -> None:
    assert search.unknown_setting("austen n_layer=2") is None
    assert "model.n_layer" in str(search.unknown_setting("n_layr=2"))


@pytest.mark.parametrize(
    ("actual", "written", "same"),
    [(None, "null", True), (False, "off", True), (True, "on", True), (1, "true", False), (0, "off", False),
     (6e-4, "0.0006", True), (12, "12.0", True), ("bpe", "bpe", True), (12, "twelve", False)],
)  # fmt: skip
def test_values_as_people_write_them(actual: object, written: str, same: bool) -> None:
    assert search.same_value(actual, written) is same


def test_every_setting_can_be_searched_by_its_value(run: Run) -> None:
    from dgsgpt.rules import flatten

    save(run, 10)
    (entry,) = listing.entries([run])
    settings: RunConfig = config()
    for path, value in flatten(settings.model_dump()).items():
        written = "off" if value in (None, False) and not isinstance(value, int | float) else str(value)
        if " " not in written:
            assert search.matches(entry, f"{path}={written}", settings), path


# ---------------------------------------------------------------- verification
def verdicts(entry: Entry) -> dict[Path, Verdict]:
    return {entry.info.path: listing.check(entry)}


def test_verification_finds_a_flipped_bit_that_sizes_cannot_show(run: Run) -> None:
    path = save(run, 10)
    flip_a_bit(path)
    (entry,) = listing.entries([run])
    assert listing.state_word(entry, {}) == "whole"
    known = verdicts(entry)
    assert listing.state_word(entry, known) == "damaged"
    problem = listing.problem_of(entry, known)
    assert problem is not None
    assert problem.startswith("model.safetensors is damaged")
    assert str(path) not in problem


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_verified_holds_until_one_of_its_files_is_another(run: Run, name: str) -> None:
    path = save(run, 10)
    (entry,) = listing.entries([run])
    known = verdicts(entry)
    assert listing.state_word(entry, known) == "verified"
    (path / name).write_bytes((path / name).read_bytes())  # the same bytes, written anew: nobody has read these
    (entry,) = listing.entries([run])
    assert listing.state_word(entry, known) == "whole"


def test_instead_of_a_damaged_one_the_last_whole_before_it_is_offered(run: Run) -> None:
    for step in (10, 20, 30, 40):
        save(run, step)
    flip_a_bit(run.path / "checkpoints" / "step_00000020")
    found = listing.entries([run])
    by_step = {e.step: e for e in found}
    known = verdicts(by_step[20])
    assert listing.earlier_whole(found, by_step[30], known) == by_step[10]
    assert listing.earlier_whole(found, by_step[10], known) == by_step[30]  # none before it: the first after it
    assert listing.earlier_whole([by_step[30]], by_step[30], known) is None


# ---------------------------------------------------------------- what people say
def test_words_of_people_are_searched_and_filtered(run: Run) -> None:
    save(run, 10)
    save(run, 20)
    annotate(run, "step_00000010", star=True, add_tags=["Baseline"], note="before the leak", name="The old one")
    annotate(run, None, add_tags=["paper"])
    found = listing.entries([run])
    now = time.time()
    for query, steps in (("baseline", [10]), ("LEAK", [10]), ("old", [10]), ("paper", [20, 10]), ("absent", [])):
        assert [e.step for e in search.choose(found, "all", query, {}, now)] == steps, query
    assert [e.step for e in search.choose(found, "starred", "", {}, now)] == [10]
    assert [e.title for e in found] == ["austen-small", "The old one"]
    assert found[1].tags == ["best", "Baseline", "paper"] or found[1].tags == ["Baseline", "paper"]


def test_only_filters_that_part_the_list_are_offered(run: Run) -> None:
    save(run, 10)
    now = time.time()
    (entry,) = listing.entries([run])
    assert search.filters([entry], now) == ["all"]
    old = replace(entry, info=replace(entry.info, saved_at=now - 8 * 86_400), best=False)
    starred = replace(entry, said=Annotation(star=True), best=False)
    assert search.filters([old, starred], now) == ["all", "starred", "week"]


def test_an_imported_one_is_told_by_itself_or_by_its_run(run: Run) -> None:
    save(run, 10, imported={"family": "DGS-GPT"})
    save(run, 20)
    found = listing.entries([run])
    assert [listing.state_word(e, {}) for e in found] == ["whole", "imported"]
    files.write_json(run.path / "run.json", {**run.facts, "imported": {"family": "dgsgpt"}})
    assert [e.imported is not None for e in listing.entries([Run(run.path)])] == [True, True]


def test_damaged_words_do_not_take_the_list_away(run: Run) -> None:
    save(run, 10)
    (run.path / "annotations.json").write_text('{"checkpoints": 5}', encoding="utf-8")
    (entry,) = listing.entries([run])
    assert not entry.said


# ---------------------------------------------------------------- reading again
def test_a_checkpoint_is_described_again_only_when_a_file_is_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(run, 10)
    save(run, 20)
    seen: list[Path] = []
    describe = listing.describe
    monkeypatch.setattr(listing, "describe", lambda p: (seen.append(p), describe(p))[1])
    listing._known().clear()
    listing.entries([run])
    assert len(seen) == 2
    listing.entries([run])
    assert len(seen) == 2
    with (path / "model.safetensors").open("r+b") as f:
        f.truncate(100)  # in place: the directory itself does not change
    assert [e.info.complete for e in listing.entries([run])] == [True, False]
    assert seen[2:] == [path]
    shutil.rmtree(path)
    assert [e.step for e in listing.entries([run])] == [20]


@pytest.mark.parametrize("count", [0, 1, 29, 30, 31, 1000])
def test_the_small_curve_keeps_its_last_point(count: int) -> None:
    values = [float(i) for i in range(count)]
    thin = table._thinned(values)
    assert len(thin) <= 30
    assert thin[-1:] == values[-1:]
    assert thin == sorted(thin)


# ---------------------------------------------------------------- picking
def test_the_first_picked_stays_a() -> None:
    assert table.in_order(["x", "a", "b"], ["b", "a"]) == ["b", "a", "x"]
    assert table.in_order(["a"], ["b", "a"]) == ["a"]
    assert table.in_order([], ["a"]) == []


def test_rows_of_what_was_picked_else_the_newest_whole(run: Run) -> None:
    for step in (10, 20, 30, 40):
        save(run, step)
    (run.path / "checkpoints" / "step_00000040" / "state.json").unlink()
    found = listing.entries([run])
    assert table.first_rows(found, []) == [1, 2]
    assert table.first_rows(found, ["austen-small@10", "austen-small@40"]) == [0, 3]
    assert table.first_rows(found, ["gone@1"]) == [1, 2]


# ---------------------------------------------------------------- addresses
def test_names_in_addresses_find_their_entry(run: Run) -> None:
    save(run, 10)
    save(run, 20)
    found = listing.entries([run])
    for ref, step in (("austen-small@10", 10), ("austen-small", 20)):
        entry = listing.by_ref(found, ref)
        assert entry is not None
        assert entry.step == step
    for ref in ("austen-small@99", "../../etc", "", None):
        assert listing.by_ref(found, ref) is None
