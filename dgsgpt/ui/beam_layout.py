"""Where each part of a beam search's tree stands on paper: depth goes right, branches go down.

Chains without a branch are one segment. Each segment has a row of its own for as many tokens as it is long, a first
child goes on in its parent's row, and every other stands below all that was placed before it. So nothing overlaps, and
no line from a parent to its children crosses anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dgsgpt.generation.beam import BeamResult, Node

# Leads to the best text, to another of the texts given, to one that ended and is not given, went on without becoming
# a text, was given up at once.
Kind = Literal["best", "found", "ended", "alive", "pruned"]
Tree = Sequence["Node"]
_TEXTS: tuple[Kind, ...] = ("best", "found")
_ORDER: tuple[Kind, ...] = (*_TEXTS, "ended", "alive", "pruned")


@dataclass(frozen=True)
class Segment:
    """A chain of tokens without a branch.

    `nodes` are places in the tree, of depths `first` to `last`; `parent` is a place among the segments, which come
    parents first. `rank` is that of the text which ends here, from 1; `cut` tells that the tree goes on beyond what
    is shown.
    """

    nodes: tuple[int, ...]
    first: int
    last: int
    row: int
    parent: int | None
    kind: Kind
    rank: int | None
    leaf: bool
    cut: bool


@dataclass(frozen=True)
class Layout:
    """Segments in `rows` rows and `depth` columns, one a token; `shown` and `hidden` count nodes by their kind.

    `all_depth` is the depth of the whole tree; what is deeper than `depth` counts as hidden.
    """

    segments: tuple[Segment, ...]
    rows: int
    depth: int
    all_depth: int
    shown: Counter[Kind]
    hidden: Counter[Kind]

    def path(self, at: int) -> list[int]:
        """The nodes from the prompt to the end of a segment."""
        nodes: list[int] = []
        where: int | None = at
        while where is not None:
            nodes = [*self.segments[where].nodes, *nodes]
            where = self.segments[where].parent
        return nodes


def lay_out(result: BeamResult, most_depth: int, most_others: int) -> Layout:
    """The tree of a search, to a depth of `most_depth` tokens.

    All that leads to the texts given is shown, and of the rest the `most_others` tokens that come nearest to the
    likeliest of their depth, with what they follow.
    """
    tree = result.tree
    kinds = kinds_of(tree, [beam.node for beam in result.beams])
    shown = _shown(tree, kinds, most_depth, most_others)
    ranks = {beam.node: rank for rank, beam in reversed(list(enumerate(result.beams, 1)))}
    segments = _place(_segments(tree, kinds, shown, ranks, most_depth), tree)
    depth = max((node.depth for node in tree), default=0)
    return Layout(
        tuple(segments),
        rows=1 + max((segment.row for segment in segments), default=-1),
        depth=min(depth, most_depth),
        all_depth=depth,
        shown=Counter(kinds[at] for at in shown),
        hidden=Counter(kind for at, kind in enumerate(kinds) if at not in shown),
    )


def kinds_of(tree: Tree, ends: Sequence[int]) -> list[Kind]:
    """What becomes of each node, `ends` being the last nodes of the texts, best first."""
    own: dict[str, Kind] = {"alive": "alive", "finished": "ended", "pruned": "pruned"}
    kinds = [own[node.state] for node in tree]
    for rank, end in reversed(list(enumerate(ends))):
        for at in _upwards(tree, end):
            kinds[at] = "found" if rank else "best"
    return kinds


def _upwards(tree: Tree, node: int | None) -> Iterable[int]:
    while node is not None:
        yield node
        node = tree[node].parent


def _shown(tree: Tree, kinds: Sequence[Kind], most_depth: int, most_others: int) -> set[int]:
    near = [at for at, node in enumerate(tree) if node.depth <= most_depth]
    shown = {at for at in near if kinds[at] in _TEXTS}
    limit = len(shown) + most_others
    likeliest: dict[int, float] = {}
    for node in tree:
        likeliest[node.depth] = max(likeliest.get(node.depth, node.logprob), node.logprob)
    for at in sorted(near, key=lambda at: (likeliest[tree[at].depth] - tree[at].logprob, at)):
        missing = [one for one in _upwards(tree, at) if one not in shown]
        if len(shown) + len(missing) <= limit:
            shown.update(missing)
    return shown


def _segments(
    tree: Tree, kinds: Sequence[Kind], shown: set[int], ranks: dict[int, int], most_depth: int
) -> list[Segment]:
    """Chains, parents first, all in row 0."""
    children: dict[int | None, list[int]] = {}
    for at in sorted(shown):
        children.setdefault(tree[at].parent, []).append(at)
    goes_on = {node.parent for node in tree if node.depth == most_depth + 1}
    found: list[Segment] = []
    waiting: list[tuple[int, int | None]] = [(at, None) for at in children.get(None, [])]
    while waiting:
        at, parent = waiting.pop()
        chain = [at]
        while len(below := children.get(chain[-1], [])) == 1 and kinds[below[0]] == kinds[at]:
            chain.append(below[0])
        last = chain[-1]
        waiting += [(one, len(found)) for one in below]
        found.append(
            Segment(
                tuple(chain), tree[at].depth, tree[last].depth, 0, parent, kinds[at], ranks.get(last),
                leaf=not below, cut=last in goes_on,
            )
        )  # fmt: skip
    return found


def _place(segments: list[Segment], tree: Tree) -> list[Segment]:
    """The same with their rows."""
    below: dict[int | None, list[int]] = {}
    for at, segment in enumerate(segments):
        below.setdefault(segment.parent, []).append(at)
    extent = [segment.last for segment in segments]
    for at in reversed(range(len(segments))):
        extent[at] = max([extent[at], *(extent[child] for child in below.get(at, ()))])

    def order(at: int) -> tuple[object, ...]:
        """The straight line first, then other texts, then what is short, so that it stands near."""
        segment = segments[at]
        straight = at == min(below[segment.parent], key=lambda one: _weight(segments[one], tree))
        return (
            not straight,
            segment.kind not in _TEXTS,
            extent[at],
            _ORDER.index(segment.kind),
            -tree[segment.nodes[0]].logprob,
        )

    offsets = [0] * len(segments)  # rows below the parent
    taken: list[dict[int, int]] = [{} for _ in segments]  # the lowest row of each depth, from the segment's own

    def stack(parent: int | None, mine: dict[int, int]) -> dict[int, int]:
        """Set the offsets of the children below what is taken by their parent, `mine`; what all of them take."""
        for child in sorted(below.get(parent, ()), key=order):
            offsets[child] = max([0, *(mine[depth] + 1 for depth in taken[child] if depth in mine)])
            mine |= {depth: offsets[child] + row for depth, row in taken[child].items()}
        return mine

    for at in reversed(range(len(segments))):
        taken[at] = stack(at, dict.fromkeys(range(segments[at].first, segments[at].last + 1), 0))
    stack(None, {})
    placed: list[Segment] = []
    for segment, offset in zip(segments, offsets, strict=True):
        above = 0 if segment.parent is None else placed[segment.parent].row
        placed.append(replace(segment, row=above + offset))
    return placed


def _weight(segment: Segment, tree: Tree) -> tuple[object, ...]:
    """Which of several siblings goes straight on: the one to the best text, else to another, else the likeliest."""
    return min(2, _ORDER.index(segment.kind)), -tree[segment.nodes[0]].logprob


__all__ = ["Kind", "Layout", "Segment", "kinds_of", "lay_out"]
