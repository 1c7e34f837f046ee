"""Which run came from which checkpoint: forks, fine-tunings, imports, and runs that went on after a stop.

Read off `run.json` (`parent`, `imported`) of every run, of those in the trash too, and `events.jsonl`. Without torch.
A checkpoint's ancestors are a chain, since a run has one origin; its children are the runs that began from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dgsgpt import files
from dgsgpt.annotations import CHECKPOINT_NAME
from dgsgpt.metrics import read_events
from dgsgpt.runs import Run, list_runs
from dgsgpt.trash import list_trash

Kind = Literal["scratch", "import", "fork", "fine-tune", "quantize", "unknown"]
Place = Literal["here", "in the trash", "deleted", "replaced", "a circle"]
_KINDS: dict[str, Kind] = {"fork": "fork", "fine-tune": "fine-tune", "quantize": "quantize"}


@dataclass(frozen=True)
class RunNode:
    """A run and its origin. `parent` is (run id, step); `steps` are those of its checkpoints that are here."""

    id: str
    path: Path
    kind: Kind
    parent: tuple[str, int] | None = None
    imported: str | None = None
    steps: tuple[int, ...] = ()
    created_at: float = 0.0
    trashed: bool = False

    @property
    def resumed_at(self) -> list[int]:
        """Steps from which the run went on after it had ended, in that order; that a fork begins is no such step."""
        steps = [event["step"] for event in read_events(self.path, ("resume",))]
        forked = self.kind == "fork" and self.parent is not None and steps[:1] == [self.parent[1]]
        return steps[1:] if forked else steps


@dataclass(frozen=True)
class Link:
    """A checkpoint of a chain, or a run as such (`step` None), with how its run began and where it is now.

    `place` is "replaced" where another run has its name now, and "a circle" where damaged files lead back to a run
    that was passed already.
    """

    run: str
    step: int | None
    kind: Kind
    place: Place = "here"
    imported: str | None = None
    resumed_at: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """`run a, step 500 (in the trash)`."""
        step = "" if self.step is None else f", step {self.step}"
        return f"run {self.run}{step}" + ("" if self.place == "here" else f" ({self.place})")


@dataclass(frozen=True)
class Lineage:
    """All runs by id, and the checkpoints that lie in the trash by themselves."""

    runs: Mapping[str, RunNode]
    trashed_steps: frozenset[tuple[str, int]] = frozenset()

    def ancestors(self, run_id: str, step: int | None = None) -> list[Link]:
        """From a checkpoint (or a run) back to the one that began from scratch or was imported, which is last."""
        chain: list[Link] = []
        passed: set[str] = set()
        child: RunNode | None = None
        while True:
            link, node = self._link(run_id, step, child)
            if run_id in passed:
                return [*chain, replace(link, place="a circle", kind="unknown")]
            chain.append(link)
            passed.add(run_id)
            if node is None or node.parent is None:
                return chain
            (run_id, step), child = node.parent, node

    def children(self, run_id: str, step: int | None = None) -> list[RunNode]:
        """Runs that began from this checkpoint, or from any of the run's, the oldest first."""
        own = self.runs.get(run_id)
        found = [
            node
            for node in self.runs.values()
            if node.parent is not None
            and node.parent[0] == run_id
            and step in (None, node.parent[1])
            and not (own and _is_younger(own, node))
        ]
        return sorted(found, key=lambda node: (node.created_at, node.id))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {"runs": [{**asdict(n), "path": str(n.path), "resumed_at": n.resumed_at} for n in self.runs.values()]}

    def _link(self, run_id: str, step: int | None, child: RunNode | None) -> tuple[Link, RunNode | None]:
        node = self.runs.get(run_id)
        if node is None:
            return Link(run_id, step, "unknown", "deleted"), None
        if child is not None and _is_younger(node, child):
            return Link(run_id, step, "unknown", "replaced"), None
        place: Place = "here"
        if node.trashed or ((run_id, step) in self.trashed_steps and step not in node.steps):
            place = "in the trash"
        elif step is not None and step not in node.steps:
            place = "deleted"
        resumed = tuple(at for at in node.resumed_at if step is None or at <= step)
        return Link(run_id, step, node.kind, place, node.imported, resumed), node


def _is_younger(parent: RunNode, child: RunNode) -> bool:
    """Whether a run was created after the one that names it as parent, which then means one that is gone."""
    return parent.created_at > child.created_at > 0


# ---------------------------------------------------------------- reading
def lineage(root: Path) -> Lineage:
    """How all runs below `root`, and those in its trash, came about."""
    trash = list_trash(root)
    whole = [item for item in trash if item.run_id and item.checkpoint_name is None]
    found = {item.run_id: _node(Run(item.content), item.run_id, trashed=True) for item in reversed(whole)}
    found |= {run.id: _node(run, run.id) for run in list_runs(root)}
    return Lineage(found, frozenset((item.run_id, item.step) for item in trash if item.step is not None))


def add_alone(known: Lineage, run_id: str, step: int, metadata: Mapping[str, Any], path: Path) -> Lineage:
    """`known` with the run of a checkpoint that lies alone at `path`, as the checkpoint's metadata tell of it."""
    node = replace(_of_facts(metadata or None, run_id, path), steps=(step,))
    return replace(known, runs={**known.runs, run_id: node})


def _node(run: Run, run_id: str, trashed: bool = False) -> RunNode:
    names = [p.name for p in run.checkpoints() if CHECKPOINT_NAME.fullmatch(p.name)]
    node = _of_facts(files.read_json(run.path / "run.json"), run_id, run.path)
    steps = tuple(int(name.removeprefix("step_")) for name in names)
    return replace(node, steps=steps, created_at=run.created_at, trashed=trashed)


def _of_facts(facts: Mapping[str, Any] | None, run_id: str, path: Path) -> RunNode:
    if facts is None:
        return RunNode(run_id, path, "unknown")
    imported, parent = facts.get("imported"), facts.get("parent")
    if isinstance(imported, dict):
        source = " ".join(str(imported[key]) for key in ("family", "source") if imported.get(key))
        return RunNode(run_id, path, "import", imported=source or "another program")
    if parent is None:
        return RunNode(run_id, path, "scratch")
    if isinstance(parent, dict) and isinstance(parent.get("run"), str) and type(parent.get("step")) is int:
        return RunNode(run_id, path, _KINDS.get(str(parent.get("kind")), "unknown"), (parent["run"], parent["step"]))
    return RunNode(run_id, path, "unknown")


# ---------------------------------------------------------------- in words
def tell(chain: list[Link]) -> str:
    """The chain from its beginning on, e.g. `scratch → run a, step 500 → fork: run b, step 900`."""
    words: list[str] = []
    for link in reversed(chain):
        begun = {"scratch": "scratch → ", "import": f"import of {link.imported} → ", "unknown": "unknown → "}
        words.append((begun.get(link.kind, "") if not words else f"{link.kind}: ") + link.label)
        if link.resumed_at:
            words[-1] += f" (resumed at {', '.join(map(str, link.resumed_at))})"
    return " → ".join(words)
