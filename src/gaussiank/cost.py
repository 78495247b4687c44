"""What one exchange costs, for each collective: its messages in plain numbers, and the entries that workers handle.

The one place of these formulas. ``auto`` puts them on one flat link (``Cost.traffic``); the lab's simulator on the
levels of a cluster. How many bytes a row takes, both say themselves (``Load``): from the codec's tables, or from
curves. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

Kind = Literal["all_gather", "all_to_all", "all_reduce", "broadcast", "swaps"]

TRAILER_BYTES = 8
"""Behind a row: the load of its region, or the size of its payload."""
FLAG_BYTES = 1
"""Behind a share of values: whether some are not finite."""
STRAIGHT_BYTES = 1 << 20
"""All rows of an all-gather together, at most, that go straight. Longer ones fill their links in a ring as well, and
where several workers share a link, a ring crosses it less often."""


class Message(NamedTuple):
    """One message of every worker, or the swaps of a tree.

    Attributes:
        kind: what PyTorch calls it; ``swaps`` are exchanges with log2 P partners, one after another.
        size: bytes that a worker sends to another one; of an all-reduce or a broadcast, of the vector.
        level: of the cluster whose members take part alone, 0 the innermost; None: all workers.
        answer: of swaps, bytes of the result that a worker beyond a power of two gets in the end.
    """

    kind: Kind
    size: float
    level: int | None = None
    answer: float = 0.0


class Traffic(NamedTuple):
    """What one exchange costs on one flat link.

    Attributes:
        messages: messages between two workers that have to follow each other.
        sent_bytes: bytes that each worker sends, on average over workers.
        touched: sparse entries that each worker decodes and adds up.
        straight: messages from each worker to all others at once, that have to follow each other and those.
    """

    messages: int
    sent_bytes: float
    touched: float
    straight: int = 0


class Cost(NamedTuple):
    """What one exchange costs, on any link.

    Attributes:
        messages: that follow each other.
        merged: entries that each worker merges between messages.
        added: entries that each worker decodes and adds up at the end.
    """

    messages: Sequence[Message]
    merged: float
    added: float

    def traffic(self, workers: int, members: Sequence[int] = ()) -> Traffic:
        """Return what it costs on one flat link; ``members``: of each level, where there are levels."""
        hops, sent_bytes, straight = 0, 0.0, 0
        for message in self.messages:
            taking_part = workers if message.level is None else members[message.level]
            sent_bytes += bytes_of(message, taking_part)
            more_hops, more_straight = steps_of(message, taking_part)
            hops, straight = hops + more_hops, straight + more_straight
        return Traffic(hops, sent_bytes, self.merged + self.added, straight)


class Load(Protocol):
    """What is exchanged, and the bytes that its rows take; entries need not be whole numbers."""

    @property
    def numel(self) -> float:
        """Length of the vector."""

    @property
    def k(self) -> float:
        """Entries that each worker selects."""

    def whole(self, entries: float) -> float:
        """Return how many entries a row has room for where so many are wanted."""

    def union(self, workers: float) -> float:
        """Return how many different entries workers select together."""

    def selection_bytes(self) -> float:
        """Return the row of an all-gather with one worker's selection."""

    def region_bytes(self, entries: float, regions: float) -> float:
        """Return about what so many entries of one of ``regions`` equal parts of the vector take."""

    def row_bytes(self, entries: float, runs: float = 1) -> float:
        """Return a row with room for any entries: a run of neighbours, one of ``runs`` of the vector; not above it."""

    def indices_bytes(self) -> float:
        """Return the indices of a selection; 0 where nobody has to say them."""

    def values_bytes(self, entries: float) -> float:
        """Return so many values, without indices."""

    def exact_bytes(self, entries: float) -> float:
        """Return a row whose values are not rounded."""


# ---------------------------------------------------------------------- one collective each


def dense(vector_bytes: float) -> Cost:
    """Cost an all-reduce of the whole vector."""
    return Cost([Message("all_reduce", vector_bytes)], 0.0, 0.0)


def all_gather(load: Load, workers: int) -> Cost:
    """Cost everyone's entries going to everyone: traffic grows with the workers."""
    return Cost([Message("all_gather", load.selection_bytes())], 0.0, workers * load.k)


def split(load: Load, workers: int, slack: float = 1.0) -> Cost:
    """Cost an exchange of regions, summed by their owners, trimmed to one size, and gathered."""
    room = region_room(load.k, workers, slack)
    row = load.region_bytes(room, workers) + TRAILER_BYTES
    return Cost([Message("all_to_all", row), Message("all_gather", row)], workers * room, workers * room)


def split_untrimmed(load: Load, workers: int) -> Cost:
    """Cost the split that sends every sum: sizes are exchanged first, and the sums are as many as the union."""
    sums = load.union(workers) / workers
    first, second = (load.region_bytes(one, workers) + TRAILER_BYTES for one in (load.k / workers, sums))
    sizes = [Message("all_to_all", 8), Message("all_reduce", 8)]
    return Cost([*sizes, Message("all_to_all", first), Message("all_gather", second)], load.k, workers * sums)


def leader(load: Load, workers: int) -> Cost:
    """Cost one worker's indices down a tree, and everyone's values to whoever sums a share of them, and back."""
    share = load.values_bytes(share_of(load.k, workers)) + FLAG_BYTES
    indices = load.indices_bytes()
    told = [Message("broadcast", indices)] if indices else []
    return Cost([*told, Message("all_to_all", share), Message("all_gather", share)], load.k, load.k)


def tree(load: Load, workers: int) -> Cost:
    """Cost log2 P swaps of k entries, with a merge and a cut after each."""
    answer = load.exact_bytes(load.k) + load.k  # the result, and a byte for each entry of a guest
    swaps = Message("swaps", load.row_bytes(load.k), answer=answer)
    return Cost([swaps], 2 * load.k * (workers - 1).bit_length(), load.k)


def hierarchical(load: Load, members: Sequence[int], *, trim: bool = True, dense_inside: bool = False) -> Cost:
    """Cost sums that go up the levels, each worker carrying a share of its unit's, and down again what they are in all.

    Args:
        load: what is exchanged.
        members: of each level, the innermost first.
        trim: cut a unit's sum to k entries; otherwise what leaves a unit is the union of its selections.
        dense_inside: the innermost level sums vectors.
    """
    messages: list[Message] = []
    held, merged, inside = load.k, 0.0, 1  # entries of one member of the level under way, and its workers
    in_all = load.k  # entries of the highest level's sum
    for level, count in enumerate(members):
        share = load.whole(held / inside)
        whole_vector = dense_inside and not level
        size = 4 * load.numel if whole_vector else load.row_bytes(share, inside)
        messages.append(Message("all_reduce" if whole_vector else "all_gather", size, level))
        merged += count * share
        if trim:
            in_all, held = count * inside * share, load.k
        else:
            in_all = held = load.union(inside * count)
        inside *= count
    for level in reversed(range(len(members) - 1)):
        inside //= members[level + 1]
        messages.append(Message("all_gather", load.row_bytes(load.whole(in_all / inside), inside), level))
    added = min(load.numel, members[-1] * load.k) if trim else held
    return Cost(messages, merged, added)


def region_room(k: float, workers: int, slack: float = 1.0) -> float:
    """Return the entries that a row of a trimmed split has room for."""
    return min(k, math.ceil(slack * k / max(1, workers - 1)))


def share_of(k: float, workers: int) -> int:
    """Return the values of a share: all have room for as many."""
    return max(1, math.ceil(k / workers))


# ---------------------------------------------------------------------- messages on one flat link


def gather_steps(workers: int, row_bytes: float) -> tuple[int, int]:
    """Return how many messages of an all-gather follow each other in a ring, and how many go straight to all.

    Example:
        >>> gather_steps(8, 1000), gather_steps(8, 1e6), gather_steps(1, 1000)
        ((0, 1), (7, 0), (0, 0))
    """
    if workers == 1:
        return 0, 0
    return (0, 1) if workers * row_bytes <= STRAIGHT_BYTES else (workers - 1, 0)


def steps_of(message: Message, workers: int) -> tuple[int, int]:
    """Return the messages of two workers that follow each other, and those of each to all others at once."""
    peers = workers - 1
    if message.kind == "all_gather":
        return gather_steps(workers, message.size)
    if message.kind == "all_to_all":
        return 0, int(peers > 0)
    if message.kind == "all_reduce":
        return 2 * peers, 0
    if message.kind == "broadcast":
        return peers.bit_length(), 0
    rounds, beyond = swap_rounds(workers)
    return rounds + 2 * bool(beyond), 0


def bytes_of(message: Message, workers: int) -> float:
    """Return what each worker sends, on average over workers."""
    if message.kind in ("all_gather", "all_to_all"):
        return (workers - 1) * message.size
    if message.kind == "all_reduce":
        return ring_bytes(workers, message.size)
    if message.kind == "broadcast":
        return (workers - 1) / workers * message.size
    rounds, beyond = swap_rounds(workers)
    return (rounds * (1 << rounds) + beyond) / workers * message.size + beyond * message.answer / workers


def ring_bytes(workers: int, vector_bytes: float) -> float:
    """Return what each worker sends to all-reduce a vector; no algorithm sends less.

    Example:
        >>> ring_bytes(16, 4 * 61.1e6) * 8 / 10e9  # AlexNet, 10 Gb/s: seconds
        0.3666
    """
    return 2 * (workers - 1) / workers * vector_bytes


def swap_rounds(workers: int) -> tuple[int, int]:
    """Return log2 of the largest power of two, and how many workers are beyond it.

    Example:
        >>> swap_rounds(8), swap_rounds(6)
        ((3, 0), (2, 2))
    """
    rounds = workers.bit_length() - 1
    return rounds, workers - (1 << rounds)
