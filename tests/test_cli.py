"""The command line: a whole journey in one process tree, and bad input that ends in one line and exit code 2."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.data import prepare
from dgsgpt.runs import Run, create_run
from tests import checkpoint_factory

Make = Callable[..., RunConfig]


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(make_config(**{"train.steps": 30}).to_yaml())
    return path


def dgsgpt(*arguments: object, check: int | None = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dgsgpt.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert check is None or result.returncode == check, result.stderr + result.stdout
    return result


def as_json(*arguments: object) -> Any:
    return json.loads(dgsgpt(*arguments, "--json").stdout)


@pytest.mark.slow
def test_the_whole_journey(config_file: Path, runs_dir: Path, tiny_text: Path) -> None:
    trained = as_json("train", config_file, "--run-id", "a", "--set", "train.seed=3")
    assert trained["run_id"] == "a"
    assert trained["run_dir"] == str(runs_dir / "a")
    assert trained["state"] == "finished"
    assert trained["step"] == 30
    assert trained["loss/val"] < 4
    assert as_json("runs") == [trained]
    listed = as_json("checkpoints", "a")
    assert [c["step"] for c in listed] == [30, 20, 10]
    assert as_json("checkpoints") == listed

    first = as_json("sample", "a", "--prompt", "the cat", "--max-new-tokens", 20, "--seed", 1)
    assert set(first) == {"text", "tokens", "tokens_per_s", "first_token_s"}
    assert first["tokens"] <= 20
    assert (
        as_json("sample", "a@30", "--prompt", "the cat", "--max-new-tokens", 20, "--seed", 1)["text"] == first["text"]
    )
    assert (
        dgsgpt("sample", "a", "--prompt", "the cat", "--max-new-tokens", 20, "--seed", 1).stdout
        == f"the cat{first['text']}\n"
    )

    judged = as_json("eval", listed[0]["path"])
    assert set(judged) == {"loss", "ppl", "bpb", "tokens", "bytes", "context", "stride"}
    assert judged["loss"] == pytest.approx(listed[0]["whole_split_eval"]["loss"], rel=1e-6)
    assert as_json("eval", "a", "--text", tiny_text)["tokens"] > judged["tokens"]
    assert as_json("eval", "a", "--corpus", tiny_text)["loss"] == judged["loss"]
    dataset = as_json("prepare", tiny_text, "--tokenizer", "byte")["id"]
    assert as_json("eval", "a", "--corpus", dataset)["loss"] == judged["loss"]

    assert "finished all 30 steps" in dgsgpt("resume", "a", check=2).stderr
    assert "exists already" in dgsgpt("train", config_file, "--run-id", "a", check=2).stderr


@pytest.mark.slow
def test_detach_stop_and_resume(config_file: Path, runs_dir: Path) -> None:
    started = as_json("train", config_file, "--run-id", "d", "--detach", "--set", "train.steps=1000000")
    assert started["state"] in ("starting", "running")
    run = Run(runs_dir / "d")
    deadline = time.monotonic() + 120
    while run.status().step < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped = as_json("stop", "d")
    assert stopped["state"] == "stopped"
    assert stopped["step"] >= 2
    assert "nothing to stop" in dgsgpt("stop", "d", check=2).stderr
    assert "train.steps=0" in dgsgpt("resume", "d", "--set", "train.steps=0", check=2).stderr
    assert as_json("resume", "d", "--detach", "--set", "train.lr=0.001")["state"] in ("starting", "running")
    assert run.path.joinpath("config.yaml").read_text().count("lr: 0.001") == 1
    as_json("pause", "d")
    while not run.status().paused and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "stop it before its recipe is changed" not in dgsgpt("resume", "d").stdout
    as_json("save", "d")
    assert as_json("stop", "d")["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_foreground_saves_and_says_so(config_file: Path, runs_dir: Path, signum: int) -> None:
    command = [
        sys.executable,
        "-m",
        "dgsgpt.cli",
        "train",
        str(config_file),
        "--run-id",
        "f",
        "--set",
        "train.steps=1000000",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = Run(runs_dir / "f")
    deadline = time.monotonic() + 120
    while run.status().step < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signum)  # as a terminal does
    _, text = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped after step" in text
    assert "dgsgpt resume f" in text
    assert run.status().state == "stopped"
    assert run.checkpoints()


def test_prepare_says_what_it_made(tiny_text: Path) -> None:
    made = as_json("prepare", tiny_text, "--tokenizer", "char")
    assert Path(made["path"], "train.bin").stat().st_size > 0
    assert "validation tokens" in dgsgpt("prepare", tiny_text, "--tokenizer", "char").stdout


def test_plan_has_the_keys_of_the_contract(config_file: Path) -> None:
    planned = as_json("plan", config_file)
    assert set(planned) >= {"params", "active_params", "flops_per_token", "memory", "fits", "free_bytes"}
    parts = {k: v for k, v in planned["memory"].items() if k != "total"}
    assert sum(parts.values()) == planned["memory"]["total"]
    assert "FLOPs" in dgsgpt("plan", config_file).stdout


@pytest.fixture
def saved(make_config: Make, runs_dir: Path) -> Callable[..., Path]:
    """A function that saves a checkpoint of an untrained model with some settings changed."""

    def save(**changes: Any) -> Path:
        run = create_run(runs_dir, make_config(**changes), None, ["test"])
        return checkpoint_factory.save(run, 1)

    return save


def judged(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_eval_at_another_context(saved: Callable[..., Path], tiny_text: Path) -> None:
    given = (saved(), "--text", tiny_text)
    trained = judged(*given)
    assert trained["context"] == 32
    assert judged(*given, "--context", 32) == trained
    longer = judged(*given, "--context", 80)
    assert longer["context"] == 80
    assert (longer["tokens"], longer["bytes"]) == (trained["tokens"], trained["bytes"])
    losses = {trained["loss"], longer["loss"], judged(*given, "--context", 7)["loss"]}
    for kind in ("linear", "yarn", "llama3"):
        stretched = judged(*given, "--context", 80, "--rope-scaling", kind)
        assert stretched["context"] == 80
        losses.add(stretched["loss"])
    assert len(losses) == 6  # each of them reads the text in its own way
    said = CliRunner().invoke(main, ["eval", *map(str, given), "--context", "80"]).stdout
    assert "context 80" in said


def test_eval_with_overlapping_windows(saved: Callable[..., Path], tiny_text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(tiny_text.read_text()[:600])
    given = (saved(), "--text", short)
    plain, exact = judged(*given), judged(*given, "--stride", 1)
    assert set(plain) == {"loss", "ppl", "bpb", "tokens", "bytes", "context", "stride"}
    assert (plain["stride"], exact["stride"]) == (32, 1)
    assert plain["tokens"] == exact["tokens"] == 599
    assert plain["loss"] != exact["loss"]
    assert judged(*given, "--stride", 32) == plain
    said = CliRunner().invoke(main, ["eval", *map(str, given), "--stride", "8"]).stdout
    assert "context 32, stride 8" in said
    assert "2,303 tokens were read, 3.84 times the text" in said


def test_eval_tells_where_its_figures_come_from(saved: Callable[..., Path], tiny_text: Path) -> None:
    given = (saved(), "--text", tiny_text)
    details = judged(*given, "--details")
    assert details["by_position"][-1]["high"] == 32
    assert sum(group["tokens"] for group in details["by_frequency"]) == details["tokens"]
    assert details["hardest"]
    said = CliRunner().invoke(main, ["eval", *map(str, given)]).stdout
    assert "17 to 32" in said
    assert "times in the text itself" in said
    assert "hardest" not in said
    assert "hardest, byte" in CliRunner().invoke(main, ["eval", *map(str, given), "--details"]).stdout


def test_a_text_does_not_steer_the_terminal(saved: Callable[..., Path], tmp_path: Path) -> None:
    hostile = tmp_path / "text.txt"
    hostile.write_text("\x1b[31mred\x07 [bold]x[/] " * 30)
    result = CliRunner().invoke(main, ["eval", str(saved()), "--text", str(hostile), "--details"])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold]x[/]" in result.stdout


def test_eval_by_the_frequencies_of_the_dataset_it_learned_from(
    make_config: Make, runs_dir: Path, tiny_text: Path
) -> None:
    dataset = prepare.prepare(make_config().data, 32)
    run = create_run(runs_dir, make_config(), None, ["test"])
    path = checkpoint_factory.save(run, 1, data_fingerprint=dataset.fingerprint)
    assert judged(path, "--text", tiny_text, "--details")["frequency_rule"] == f"the training split of {dataset.id}"


def test_eval_keeps_and_lists(saved: Callable[..., Path], tiny_text: Path, tmp_path: Path, runs_dir: Path) -> None:
    assert "nothing was kept yet" in CliRunner().invoke(main, ["eval", "--list"]).stdout
    one, two = saved(), saved(**{"model.n_layer": 1})
    run = one.parent.parent
    result = CliRunner().invoke(main, ["eval", run.name, "--text", str(tiny_text)])
    assert f"kept in {run / 'evaluations.jsonl'}" in result.stderr
    judged(one, "--text", tiny_text, "--no-keep")
    judged(f"{two.parent.parent.name}@1", "--text", tiny_text, "--stride", 16)
    found = json.loads(CliRunner().invoke(main, ["eval", "--list", "--json"]).stdout)
    assert found["damaged"] == 0
    first, second = found["evaluations"]
    assert first["results"]["bpb"] <= second["results"]["bpb"]
    assert {first["run"], second["run"]} == {run.name, two.parent.parent.name}
    assert {first["stride"], second["stride"]} == {16, 32}
    assert first["text"] == {
        "name": str(tiny_text),
        "sha256": hashlib.sha256(tiny_text.read_bytes()).hexdigest(),
        "bytes": tiny_text.stat().st_size,
    }
    stretched = next(e for e in (first, second) if e["stride"] == 16)["command"]
    assert stretched[:2] == ["dgsgpt", "eval"]
    assert stretched[-2:] == ["--stride", "16"]
    with (run / "evaluations.jsonl").open("a") as f:
        f.write("broken\n")
    for reference in (run.name, f"{run.name}@1", one):
        listed = CliRunner().invoke(main, ["eval", "--list", str(reference)])
        assert listed.stdout.count(run.name) == 1
        assert "1 damaged" in listed.stderr


def test_an_evaluation_that_cannot_be_kept_is_shown(
    saved: Callable[..., Path], tiny_text: Path, tmp_path: Path
) -> None:
    path = saved()
    alone = tmp_path / "elsewhere"
    shutil.copytree(path, alone)
    result = CliRunner().invoke(main, ["eval", str(alone), "--text", str(tiny_text), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["tokens"]
    assert "not kept" in result.stderr
    (path.parent.parent / "evaluations.jsonl").mkdir()
    result = CliRunner().invoke(main, ["eval", str(path), "--text", str(tiny_text)])
    assert result.exit_code == 0
    assert "bits per byte" in result.stdout
    assert "warning: " in result.stderr
    assert "cannot be kept" in result.stderr


def test_eval_reads_standard_input(saved: Callable[..., Path], tiny_text: Path) -> None:
    path = str(saved())
    piped = CliRunner().invoke(main, ["eval", path, "--text", "-", "--json"], input=tiny_text.read_bytes())
    assert json.loads(piped.stdout) == judged(path, "--text", tiny_text)
    for given, message in (
        (b"", "standard input: the file is empty"),
        (b"a\0b", "binary"),
        (b"ab\xff", "byte 2 (0xff)"),
    ):
        result = CliRunner().invoke(main, ["eval", path, "--text", "-"], input=given)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: standard input: ")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CHECKPOINT (a directory, RUN or RUN@STEP), or --list"),
        (["--list", "--text", "x"], "leave --text and --corpus out"),
        (["x", "--corpus", "austen", "--text", "x"], "exclude each other"),
    ],
)
def test_eval_says_what_is_missing_or_too_much(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--stride", "0"], "stride=0 must be 1 to 32 tokens, the context; leave it out"),
        ({}, ["--stride", "33"], "stride=33 must be 1 to 32 tokens"),
        ({}, ["--stride", "9", "--context", "8"], "stride=9 must be 1 to 8 tokens"),
        ({}, ["--context", "0"], "context=0 must be at least 1 token"),
        ({}, ["--context", "-5"], "context=-5 must be at least 1 token"),
        ({}, ["--rope-scaling", "yarn"], "needs a context beyond the trained 32 tokens, not 32; raise the context"),
        ({}, ["--rope-scaling", "linear", "--context", "20"], "needs a context beyond the trained 32 tokens, not 20"),
        ({"model.rope": None}, ["--context", "33"], "context=33 must not exceed the model's 32 learned positions"),
        ({"model.rope": None}, ["--context", "64", "--rope-scaling", "llama3"], "rope scaling llama3 needs rotary"),
        (
            {"model.rope": None, "model.positions": "none"},
            ["--context", "64", "--rope-scaling", "yarn"],
            "rope scaling yarn needs rotary positions",
        ),
    ],
)
def test_a_context_that_cannot_be_evaluated_is_one_line_and_exit_code_2(
    changes: dict[str, Any], options: list[str], message: str, saved: Callable[..., Path], tiny_text: Path
) -> None:
    result = CliRunner().invoke(main, ["eval", str(saved(**changes)), "--text", str(tiny_text), *options])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_doctor_reports() -> None:
    assert set(as_json("doctor")) >= {"python", "torch", "gpu", "memory", "profile", "writing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "none.yaml: no such config file"),
        (["train", "CONFIG", "--set", "model.n_head=5"], "model.n_head=5 must divide model.n_embd=32; try 4 or 8"),
        (
            ["train", "CONFIG", "--set", "model.window.size=99"],
            "model.window.size=99 must not exceed model.block_size=32",
        ),
        (["train", "CONFIG", "--set", "model.moe.n_expert_per_token=9"], "must not exceed model.moe.n_expert=8"),
        (["train", "CONFIG", "--set", "model.n_heads=2"], "did you mean model.n_head?"),
        (["train", "CONFIG", "--run-id", "a/b"], "run id 'a/b' must be"),
        (["train", "CONFIG", "--set", "data.corpus=/none.txt"], "/none.txt"),
        (["train", "CONFIG", "--set", "data.corpus=EMPTY"], "empty"),
        (["train", "CONFIG", "--set", "data.corpus=BINARY"], "binary"),
        (["train", "CONFIG", "--set", "data.corpus=SHORT"], "block_size"),
        (["prepare", "EMPTY"], "empty"),
        (["prepare", "DIRECTORY"], "director"),
        (["resume", "none"], "no run 'none'"),
        (["stop", "none"], "no run 'none'"),
        (["pause", "none"], "no run 'none'"),
        (["save", "none"], "no run 'none'"),
        (["train", "CONFIG", "--set", "train.lr=.nan"], "train.lr"),
        (["train", "CONFIG", "--set", "train.steps=0"], "train.steps=0 must be at least 1"),
        (["train", "CONFIG", "--set", "train.optimizer=sgd"], "train.optimizer"),
        (
            ["train", "CONFIG", "--set", "train.optimizer_in_backward=true"],
            "train.grad_clip=1.0 does not go with train.optimizer_in_backward",
        ),
        (
            ["train", "CONFIG", "--set", "train.weight_precision=bf16", "--set", "train.precision=fp32"],
            "set train.precision=bf16",
        ),
        (["train", "CONFIG", "--set", "data.document_separator=~~end~~"], "~~end~~"),
        (["bench", "speedrun"], "--text FILE is missing"),
        (["bench", "speedrun", "--text", "EMPTY"], "empty"),
        (["bench", "speedrun", "--text", "BINARY", "--target", "nan"], "--target nan must be a loss"),
        (["checkpoints", "none"], "no run 'none'"),
        (["sample", "none", "--prompt", "x"], "no checkpoint 'none'"),
        (["eval", "none"], "no checkpoint 'none'"),
        (["eval", "--list", "none"], "no run 'none'"),
        (["plan", "CONFIG", "--set", "train.lr=-1"], "train.lr=-1 must be greater than 0"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, config_file: Path, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "short.txt").write_text("too short\n")
    places = {"CONFIG": config_file, "EMPTY": tmp_path / "empty.txt", "BINARY": tmp_path / "binary.txt"}
    places |= {"SHORT": tmp_path / "short.txt", "DIRECTORY": tmp_path}
    for name, place in places.items():
        arguments = [a.replace(name, str(place)) for a in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not runs_dir.exists() or list(runs_dir.iterdir()) == []


# ---------------------------------------------------------------- sample
@pytest.fixture
def letters(make_config: Make, runs_dir: Path) -> str:
    """A checkpoint whose tokenizer knows only a few characters."""
    run = create_run(runs_dir, make_config(), run_id="letters")
    checkpoint_factory.save(run, 5, characters=" abcdef")
    return "letters"


def sample(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["sample", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_samples_are_what_each_seed_gives_alone(letters: str) -> None:
    rules = ["--prompt", "abc", "--max-new-tokens", 12, "--preset", "creative", "--top-k", 5, "--stop", "ff"]
    told = json.loads(sample(letters, *rules, "--seed", 4, "--samples", 3, "--json").stdout)
    assert set(told) == {"text", "tokens", "tokens_per_s", "first_token_s", "samples"}
    assert [one["seed"] for one in told["samples"]] == [4, 5, 6]
    assert told["tokens"] == sum(one["tokens"] for one in told["samples"])
    for one in told["samples"]:
        alone = json.loads(sample(letters, *rules, "--seed", one["seed"], "--json").stdout)
        assert set(alone) == {"text", "tokens", "tokens_per_s", "first_token_s"}
        assert alone["text"] == one["text"]
    shown = sample(letters, *rules, "--seed", 4, "--samples", 3).stdout
    assert shown == "".join(
        f"--- sample {n}, seed {one['seed']}\nabc{one['text']}\n" for n, one in enumerate(told["samples"], 1)
    )


def test_tokens_are_told_with_alternatives_and_another_one_can_be_gone_on_from(letters: str) -> None:
    rules = ["--prompt", "abc", "--temperature", 1, "--seed", 4]
    told = json.loads(sample(letters, *rules, "--max-new-tokens", 8, "--alternatives", 3, "--json").stdout)
    assert "".join(one["text"] for one in told["choices"]) == told["text"]
    assert all(len(one["alternatives"]) == 3 for one in told["choices"])
    ids = [one["id"] for one in told["choices"]]
    rest = sample(letters, *rules, "--max-new-tokens", 5, "--written", ",".join(map(str, ids[:3])), "--json").stdout
    assert json.loads(rest)["text"] == told["text"]  # as if it had never stopped
    other = next(one["id"] for one in told["choices"][2]["alternatives"] if one["id"] != ids[2])
    branched = sample(letters, *rules, "--max-new-tokens", 5, "--written", f"{ids[0]}, {ids[1]}, {other}").stdout
    assert branched.startswith("abc" + told["text"][:2])
    assert branched.strip()[: 3 + 3] != "abc" + told["text"][:3]
    lines = sample(letters, *rules, "--max-new-tokens", 2, "--alternatives", 1).stdout.splitlines()[-2:]
    assert [int(line.split()[0]) for line in lines] == ids[:2]


def test_an_option_changes_one_setting_of_a_preset(letters: str) -> None:
    greedy = sample(letters, "--prompt", "abc", "--max-new-tokens", 12, "--temperature", 0).stdout
    rules = ["--prompt", "abc", "--max-new-tokens", 12, "--preset", "precise"]
    assert sample(letters, *rules, "--temperature", 0, "--seed", 1).stdout == greedy
    assert sample(letters, *rules, "--temperature", 50, "--seed", 1).stdout != greedy


def test_beams_are_listed_with_their_scores(letters: str) -> None:
    rules = ["--prompt", "abc", "--max-new-tokens", 6, "--beams", 3, "--length-penalty", 0.5]
    told = json.loads(sample(letters, *rules, "--json").stdout)
    assert set(told) == {"text", "tokens", "tokens_per_s", "first_token_s", "beams"}
    scores = [beam["score"] for beam in told["beams"]]
    assert scores == sorted(scores, reverse=True)
    assert len({beam["text"] for beam in told["beams"]}) == 3
    assert told["text"] == told["beams"][0]["text"]
    assert told["beams"][0]["score"] == pytest.approx(told["beams"][0]["logprob"] / 6**0.5)
    best = json.loads(sample(letters, *rules, "--n-best", 2, "--early-stopping", "never", "--json").stdout)
    assert best["beams"] == told["beams"][:2]  # of characters no token ends a text, so the rule changes nothing
    shown = sample(letters, *rules).stdout
    assert f"--- beam 1, score {scores[0]:.4f}\nabc{told['text']}\n" in shown


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_file_of_prompts_is_written_as_json_lines_in_its_order(letters: str, kind: str, tmp_path: Path) -> None:
    prompts = ["abc", "f", "abcd", "abcdef" * 40]
    file, out = tmp_path / f"prompts.{kind}", tmp_path / "out.jsonl"
    lines = prompts if kind == "txt" else [json.dumps({"prompt": prompt, "id": 1}) for prompt in prompts]
    file.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    rules = [letters, "--max-new-tokens", 9, "--seed", 3]
    result = sample(*rules, "--prompts", file, "--batch-size", 2, "--samples", 2)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["prompt"] for one in records] == [prompt for prompt in prompts for _ in range(2)]
    assert [one["seed"] for one in records] == list(range(3, 11))
    for one in records:
        alone = json.loads(sample(*rules[:3], "--seed", one["seed"], "--prompt", one["prompt"], "--json").stdout)
        assert one["text"] == alone["text"]
    assert records[-1]["cropped"] > 0
    assert "2 texts have prompts longer than the context" in result.stderr
    written = sample(*rules, "--prompts", file, "--out", out, "--samples", 2)
    assert written.stdout == ""
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == records
    again = CliRunner().invoke(main, ["sample", letters, "--prompts", str(file), "--out", str(out)])
    assert again.exit_code == 2
    assert "out.jsonl: exists; give another name" in again.stderr
    assert len(out.read_text(encoding="utf-8").splitlines()) == 8


def test_a_prompt_longer_than_the_context_is_said(letters: str) -> None:
    result = sample(letters, "--prompt", "abcdef" * 100, "--max-new-tokens", 2, "--seed", 1)
    assert re.search(r"note: the prompt's first \d+ tokens do not fit the context of \d+", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt TEXT or --prompts FILE"),
        (["--prompt", "a", "--prompts", "FILE"], "give either"),
        (["--prompt", "a", "--out", "OUT"], "--out is where --prompts writes"),
        (["--prompt", "a", "--beams", "3", "--top-k", "2", "--stop", "b"], "does not go with --top-k, --stop"),
        (["--prompts", "FILE", "--beams", "3"], "does not go with --prompts"),
        (["--prompt", "a", "--length-penalty", "1"], "--length-penalty is for --beams"),
        (["--prompt", "a", "--n-best", "1", "--early-stopping", "no"], "--early-stopping, --n-best is for --beams"),
        (["--prompt", "a", "--beams", "2", "--n-best", "3"], "n_best=3"),
        (["--prompt", "a", "--preset", "precize"], "did you mean precise?"),
        (["--prompt", "a", "--min-p", "2"], "min_p=2.0 must be from 0"),
        (["--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty=0.0"),
        (["--prompt", "a", "--samples", "0"], "samples=0"),
        (["--prompt", "a", "--samples", "2", "--alternatives", "3"], "--alternatives is for one text"),
        (["--prompt", "a", "--written", "1,x"], "must be token ids"),
        (["--prompt", "a", "--written", "99"], "token id 99"),
        (["--prompt", "a", "--beams", "0"], "n_beams=0"),
        (["--prompt", "axb"], "'x'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompts", "FILE"], "prompt 2 of 2"),
        (["--prompts", "FILE", "--out", "OUT"], "prompt 2 of 2"),
        (["--prompts", "EMPTY"], "holds no prompt"),
        (["--prompts", "BINARY"], "is not UTF-8 at byte 128"),
        (["--prompts", "FOLDER"], "is not a file"),
        (["--prompts", "WRONG"], "line 2 must be a JSON object"),
    ],
)
def test_a_sample_that_cannot_be_written_is_one_line(
    arguments: list[str], message: str, letters: str, tmp_path: Path
) -> None:
    contents = {"FILE": b"abc\nabz\n", "EMPTY": b" \n\n", "BINARY": bytes(range(256)), "WRONG": b'{"prompt": "a"}\n[1]'}
    places = {name: tmp_path / (name + (".jsonl" if name == "WRONG" else ".txt")) for name in contents}
    for name, content in contents.items():
        places[name].write_bytes(content)
    places |= {"OUT": tmp_path / "out.jsonl", "FOLDER": tmp_path}
    given = [str(places.get(argument, argument)) for argument in arguments]
    result = CliRunner().invoke(main, ["sample", letters, *given])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "out.jsonl").exists()


def test_a_taken_port_is_said() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        result = CliRunner().invoke(main, ["dashboard", "--port", str(s.getsockname()[1])])
    assert result.exit_code == 2
    assert "choose another with --port" in result.stderr


def test_help_names_every_command_of_this_version() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for name in (
        "dashboard",
        "train",
        "resume",
        "stop",
        "pause",
        "save",
        "runs",
        "checkpoints",
        "plan",
        "prepare",
        "sample",
        "eval",
        "doctor",
    ):
        assert f"  {name} " in text
