"""Commands of the catalogue: words about checkpoints, whether they are whole, the trash, what came from what.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option
from dgsgpt.errors import CheckpointError, RunError

if TYPE_CHECKING:
    from dgsgpt.lineage import Lineage
    from dgsgpt.runs import Run

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@dataclass(frozen=True)
class Target:
    """What a reference means: a run (`path` None), a checkpoint of a run, or one that lies outside (`run` None)."""

    run: Run | None
    path: Path | None

    @property
    def label(self) -> str:
        """`RUN`, `RUN@STEP`, or the path."""
        if self.path is None:
            return self.owner.id
        return str(self.path) if self.run is None else f"{self.run.id}@{int(self.path.name.removeprefix('step_'))}"

    @property
    def owner(self) -> Run:
        """The run.

        Raises:
            RunError: the checkpoint is of none.
        """
        if self.run is None:
            raise RunError(f"{self.path}: is not in a run's directory; `dgsgpt import` makes it a run first")
        return self.run

    @property
    def name(self) -> str | None:
        """The checkpoint's directory name; None for a run."""
        return self.path.name if self.path is not None else None


def find_target(reference: str, root: Path) -> Target:
    """What RUN, RUN@STEP or the path of either means; a damaged checkpoint is found too.

    Raises:
        RunError: there is no such run.
        CheckpointError: there is no such checkpoint.
    """
    from dgsgpt.runs import Run, open_run

    try:
        path = Path(reference).absolute()
        if _is_checkpoint(path):
            owner = path.parent.parent
            in_run = _numbered(path) and path.parent.name == "checkpoints" and (owner / "config.yaml").is_file()
            return Target(Run(owner) if in_run else None, path)
        run_id, at, step = reference.partition("@")
        run = open_run(root, run_id)
    except OSError as e:  # longer than a file's name may be, or in a folder that is not ours
        raise CheckpointError(f"{reference[:80]!r} cannot be read: {e.strerror or e}") from e
    if not at:
        return Target(run, None)
    found = {int(p.name.removeprefix("step_")): p for p in run.checkpoints() if _numbered(p)}
    if not step.isascii() or not step.isdigit() or int(step[:20]) not in found:
        there = f"there are {', '.join(map(str, sorted(found)[-5:]))}" if found else "it has none"
        raise CheckpointError(f"run {run.id!r} has no checkpoint of step {step[:40]!r}; {there}")
    return Target(run, found[int(step[:20])])


def _numbered(path: Path) -> bool:
    from dgsgpt.annotations import CHECKPOINT_NAME

    return CHECKPOINT_NAME.fullmatch(path.name) is not None


def _is_checkpoint(path: Path) -> bool:
    """Whether it is one, or was before it was damaged."""
    from dgsgpt.checkpoint import MANIFEST, MODEL

    return (_numbered(path) and path.is_dir()) or (path / MANIFEST).is_file() or (path / MODEL).is_file()


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not _on_terminal():
        raise RunError(f"{question} Say so by --yes")
    click.confirm(question, abort=True)


# ---------------------------------------------------------------- words
@click.command()
@click.argument("reference", metavar="RUN|RUN@STEP|PATH")
@click.option("--star/--no-star", default=None, help="A checkpoint with a star is not discarded by train.keep_last.")
@click.option("--tag", "tags", multiple=True, help="Add a tag; may be given several times.")
@click.option("--untag", "untags", multiple=True, metavar="TAG", help="Remove a tag.")
@click.option("--note", help="Replace the note; '' removes it.")
@click.option("--name", help="Replace the name that is shown; '' removes it. The id stays.")
@click.option("--archive/--no-archive", default=None, help="Leave a run out of lists; it is kept as it is.")
@json_option
@runs_dir_option
def annotate(
    root: Path, reference: str, star: bool | None, tags: tuple[str, ...], untags: tuple[str, ...], note: str | None,
    name: str | None, archive: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Say something of a run or checkpoint, or show what is said."""
    from dgsgpt import annotations as remarks

    target = find_target(reference, root)
    run = target.owner
    if (star, note, name, archive) == (None, None, None, None) and not tags and not untags:
        known = remarks.read(run)
        if known.problem:
            raise RunError(known.problem)
        said = known.of(target.name)
    else:
        said = remarks.annotate(
            run, target.name, star=star, add_tags=tags, remove_tags=untags, note=note, name=name, archived=archive
        )
    if as_json:
        print_json({"reference": target.label, **said.to_dict()})
        return
    marks = [mark for mark, on in (("★", said.star), ("archived", said.archived)) if on]
    parts = [target.label, *marks, *([said.name] if said.name else [])]
    click.echo("  ".join([*parts, *(f"[{tag}]" for tag in said.tags)]) + (f"\n{said.note}" if said.note else ""))


# ---------------------------------------------------------------- trust
@click.command()
@click.argument("reference", metavar="RUN|RUN@STEP|PATH")
@json_option
@runs_dir_option
def verify(root: Path, reference: str, as_json: bool) -> None:
    """Hash every file of a checkpoint, or of all of a run, and compare with its manifest."""
    target = find_target(reference, root)
    paths = [target.path] if target.path else list(reversed(target.owner.checkpoints()))
    if not paths:
        raise CheckpointError(f"run {target.label!r} has no checkpoints yet")
    problems = _hash_all(paths, as_json)
    damaged = {path: problem for path, problem in problems.items() if problem}
    instead = _instead(target, problems) if damaged else None
    if as_json:
        found = [{"path": str(path), "problem": problem} for path, problem in problems.items()]
        print_json({"whole": not damaged, "checkpoints": found, "instead": instead})
        sys.exit(2 if damaged else 0)
    for path, problem in problems.items():
        if not problem:
            click.echo(f"{path.name}: whole, every file as it was saved")
    if damaged:
        first, *more = damaged.values()
        also = f" (and {len(more)} more: {', '.join(p.name for p in list(damaged)[1:])})" if more else ""
        offer = f"the newest whole one is {instead}" if instead else "no other one of the run is whole"
        raise CheckpointError(f"{first}{also}; {offer}")


def _hash_all(paths: list[Path], quiet: bool) -> dict[Path, str | None]:
    """What is wrong with each checkpoint; None where every file is as the manifest says."""
    from dgsgpt import console
    from dgsgpt.files import directory_bytes

    sizes = {path: directory_bytes(path) for path in paths}
    problems: dict[Path, str | None] = {}
    with console.progress(quiet=quiet) as report:
        for path in paths:
            report(f"hashing {path.name}", sum(sizes[p] for p in problems) / max(1, sum(sizes.values())))
            problems[path] = _problem(path)
    return problems


def _problem(path: Path) -> str | None:
    from dgsgpt.checkpoint import verify as check

    try:
        check(path)
    except CheckpointError as e:
        return str(e).removesuffix("; use an earlier checkpoint")
    except OSError as e:
        return f"{path}: cannot be read: {e.strerror or e}"
    return None


def _instead(target: Target, known: dict[Path, str | None]) -> str | None:
    """The newest checkpoint of the run whose hashes hold, as RUN@STEP."""
    if target.run is None:
        return None
    for path in reversed(target.run.checkpoints()):
        if _numbered(path) and (known[path] if path in known else _problem(path)) is None:
            return Target(target.run, path).label
    return None


# ---------------------------------------------------------------- trash
@click.command()
@click.argument("reference", metavar="RUN|RUN@STEP|PATH")
@yes_option
@json_option
@runs_dir_option
def delete(root: Path, reference: str, yes: bool, as_json: bool) -> None:
    """Move a checkpoint, or a whole run, to the trash, from where `dgsgpt restore` brings it back."""
    from dgsgpt import trash
    from dgsgpt.format import plural, size

    target = find_target(reference, root)
    if target.path is None:
        count = plural(len(target.owner.checkpoints()), "checkpoint")
        _confirm(f"Delete the whole run {target.label} with {count}?", yes)
    item = trash.move_to_trash(root, target.owner, target.name)
    if as_json:
        print_json(item.to_dict())
    else:
        click.echo(f"{target.label} is in the trash, {size(item.bytes)}; back by `dgsgpt restore {item.id}`")


@click.command()
@click.argument("item")
@json_option
@runs_dir_option
def restore(root: Path, item: str, as_json: bool) -> None:
    """Bring ITEM (its name in `dgsgpt trash`, or the latest of RUN or RUN@STEP) back from the trash."""
    from dgsgpt import trash

    found = trash.find_item(root, item)
    path = trash.restore(root, found)
    if as_json:
        print_json({"item": found.id, "path": str(path)})
    else:
        click.echo(f"{found.label} is back: {path}")


@click.command("trash")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@click.option("--empty", is_flag=True, help="Delete the items, or all there are, for good.")
@yes_option
@json_option
@runs_dir_option
def show_trash(root: Path, items: tuple[str, ...], empty: bool, yes: bool, as_json: bool) -> None:
    """List what was deleted, or delete it for good."""
    from dgsgpt import console, trash
    from dgsgpt.format import ago, plural, size

    found = [trash.find_item(root, item) for item in items] if items else trash.list_trash(root)
    if empty:
        if found:
            total = size(sum(item.bytes for item in found))
            _confirm(f"Delete {plural(len(found), 'item')} ({total}) of the trash for good?", yes)
        freed = trash.empty(root, found)
        print_json({"items": [i.id for i in found], "bytes": freed}) if as_json else click.echo(
            f"{plural(len(found), 'item')} deleted for good, {size(freed)} freed"
        )
    elif as_json:
        print_json([item.to_dict() for item in found])
    elif not found:
        click.echo(f"the trash of {root} is empty")
    else:
        now = time.time()
        rows = [[i.id, i.label, ago(i.trashed_at, now), size(i.bytes), i.problem or i.said.name] for i in found]
        console.print_table(["item", "what", "deleted", "size", ""], rows)


# ---------------------------------------------------------------- lineage
@click.command("lineage")
@click.argument("reference", required=False, metavar="[RUN|RUN@STEP|PATH]")
@json_option
@runs_dir_option
def show_lineage(root: Path, reference: str | None, as_json: bool) -> None:
    """Tell which run or checkpoint came from which, back to scratch or an import, and what began from it."""
    from dgsgpt.lineage import lineage, tell

    known = lineage(root)
    if reference is None:
        here = [node for node in known.runs.values() if not node.trashed]
        if as_json:
            print_json(known.to_dict())
        else:
            click.echo("\n".join(tell(known.ancestors(node.id)) for node in here) or f"no runs in {root} yet")
        return
    run_id, step, known = _place(find_target(reference, root), known)
    chain, children = known.ancestors(run_id, step), known.children(run_id, step)
    if as_json:
        began = [{"run": n.id, "step": n.parent[1] if n.parent else None, "kind": n.kind} for n in children]
        print_json({"ancestors": [asdict(link) for link in chain], "children": began})
        return
    click.echo(tell(chain))
    for node in children:
        place = " (in the trash)" if node.trashed else ""
        click.echo(f"  → {node.kind}: run {node.id}{place}, from step {node.parent[1] if node.parent else '?'}")


def _place(target: Target, known: Lineage) -> tuple[str, int | None, Lineage]:
    """Run and step of a target, and the lineage that knows of it."""
    from dgsgpt.checkpoint import describe
    from dgsgpt.lineage import add_alone

    if target.path is None:
        return target.owner.id, None, known
    info = describe(target.path)
    if target.run is not None and target.run.id in known.runs:
        return target.run.id, info.step, known
    return info.run_id, info.step, add_alone(known, info.run_id, info.step, info.metadata, target.path)


COMMANDS = (annotate, verify, delete, restore, show_trash, show_lineage)
