"""The direction of imports, read off the source, and what a fresh process really loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dgsgpt"

# A module may import its own layer and those before it. Layers side by side are one set.
LAYERS: list[set[str]] = [
    {"errors", "files", "format", "heap", "manifest", "palette", "strict_yaml", "threads"},
    {"curves", "metric_lines", "metric_store", "metric_summary", "metric_table"},
    {"rules", "recipe"},
    {"architecture"},
    {"schema"},
    {"config"},
    {
        "hardware",
        "process",
        "costs",
        "micro_batch",
        "tape",
        "memory_plan",
        "planner",
        "profiles",
        "unseen",
        "update_groups",
        "fitting",
    },
    {"runs", "metrics", "metric_shelf", "model", "data"},
    {"annotations", "calibrate", "dry_run", "goals", "pace", "supervise", "launch", "checkpoint", "run_queue"}
    | {"metrics_csv"},
    {"branch", "generation", "evaluation", "inspect", "lineage", "quantization", "trash"},
    {"api", "interop", "report"},
    {"train"},
    {"cli_options", "console", "serve", "ui"},
    {
        "bench_command",
        "calibrate_command",
        "dry_run_command",
        "goals_command",
        "plan_command",
        "catalog_commands",
        "compare_command",
        "exchange_commands",
        "inspect_command",
        "metrics_command",
        "quantize_command",
        "queue_command",
        "report_command",
        "serve_command",
        "use_commands",
    },
    {"cli"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
NO_TORCH = ["config", "planner", "profiles", "hardware", "runs", "metrics", "launch", "supervise", "cli", "checkpoint"]
NO_TORCH += [
    "annotations",
    "calibrate",
    "dry_run",
    "pace",
    "catalog_commands",
    "console",
    "evaluation.kept",
    "generation.presets",
    "lineage",
    "run_queue",
    "trash",
    "train.schedule",
    "train.report",
    "train.health",
    "train.advice",
    "data.prepare",
    "data.corpora",
    "data.tokenizer",
]


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_app" not in p.parts)


def part_of(path: Path) -> str:
    """The first name below the package: `dgsgpt/model/moe.py` -> `model`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path: Path, at_import_time: bool = False) -> set[str]:
    """Parts of the package that a file imports, in functions too unless only import time is asked for."""
    tree = ast.parse(path.read_text())
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for block in typing_only for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree) if not at_import_time else ast.iter_child_nodes(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "dgsgpt":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dgsgpt."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dgsgpt.")}
    return names & set(RANK)


def test_every_module_has_a_layer() -> None:
    parts = {part_of(p) for p in sources()} - {"__init__"}
    assert parts == set(RANK), "name new modules in LAYERS"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    upward = {name for name in imported_parts(path) if RANK[name] > RANK.get(part, -1)} if part in RANK else set()
    # The checkpoint builds the model and reads the tokenizer it was saved with; the rest of a layer stays apart.
    assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}, which lie above it"


def test_the_core_never_imports_the_dashboard() -> None:
    offenders = []
    for path in sources():
        if part_of(path) == "ui":
            continue
        tree = ast.parse(path.read_text())
        modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        if any(m.split(".")[0] == "streamlit" or m.startswith("dgsgpt.ui") for m in modules):
            offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []


@pytest.mark.parametrize("path", sorted((ROOT / "pages").glob("*.py")), ids=lambda p: p.name)
def test_pages_import_no_torch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in top if isinstance(n, ast.ImportFrom)}
    assert "torch" not in names


def test_modules_marked_no_torch_load_without_it() -> None:
    code = (
        "import sys, json, importlib, time\n"
        f"for name in {NO_TORCH!r}:\n"
        "    importlib.import_module('dgsgpt.' + name)\n"
        "print(json.dumps([m for m in ('torch', 'streamlit', 'pandas', 'transformers') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(result.stdout) == []


def test_router_and_kit_load_without_torch() -> None:
    names = sorted(f"dgsgpt.ui.{p.stem}" for p in (PACKAGE / "ui").glob("*.py") if p.stem not in ("__init__", "router"))
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "False"
