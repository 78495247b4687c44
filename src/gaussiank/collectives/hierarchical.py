"""Hierarchical: merge inside each node first, so that what crosses between nodes does not grow with their workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from gaussiank import cost
from gaussiank.codec import Wire
from gaussiank.comm import Groups, groups_of
from gaussiank.cost import Cost, Load
from gaussiank.parsing import number_from
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program
from .packing import (
    Quantized,
    agree_on_capacity,
    largest_mask,
    member_mask,
    merge,
    pick,
    quantize_and_pack,
    rest_of,
    row_bytes,
    summed_mean,
    unpack,
)


@dataclass(frozen=True)
class Hierarchical(Collective):
    """Sum selections inside a node, cut the sum to k entries, and let each worker carry its share between nodes.

    Three steps: the node's selections become its sum, on each of its workers; worker i of each node exchanges the i-th
    share of it with worker i of the others; the shares' sums are gathered inside the node. Between nodes go
    ``(nodes - 1) * k / ranks_per_node`` entries a worker. Each step rounds to the wire what it sends, except a dense
    sum: a worker keeps what it rounded off its own entries and off its share of the node's sum, and the first node's
    workers what was rounded off the shares' sums, which all nodes round alike.

    Args:
        ranks_per_node: workers of a node, whose ranks follow each other; 0 takes what torchrun says.
        inside: how a node sums: ``sparse`` gathers selections, ``dense`` all-reduces them as a vector, which is better
            only where the node's own links are fast and its selections together are not sparse.
        trim: cut a node's sum to the largest k; otherwise nothing comes back and all of it is sent.
        ranks: the ranks of this worker's node, and those of its counterparts in all nodes; ``of_mesh`` and
            ``of_groups`` set them.

    Source: the two-level reduction of any all-reduce library; cut after the node's sum as in gTop-k (see ``Tree``).
    """

    ranks_per_node: int = 0
    inside: str = "sparse"
    trim: bool = True
    ranks: tuple[tuple[int, ...], tuple[int, ...]] | None = field(default=None, repr=False)
    groups: Groups | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.inside not in ("sparse", "dense"):
            raise ValueError(f"inside must be sparse or dense, got {self.inside!r}. Choose one of them.")
        if self.ranks_per_node < 0:
            raise ValueError(f"ranks_per_node must be at least 1, or 0 to ask torchrun, got {self.ranks_per_node}.")

    @classmethod
    def of_mesh(cls, mesh: DeviceMesh, *, inside: str = "sparse", trim: bool = True) -> Hierarchical:
        """Take nodes from a mesh of two dimensions: nodes, then the workers of a node."""
        if mesh.ndim != 2:
            raise ValueError(f"mesh must have two dimensions, nodes and their workers, got {mesh.ndim}. Reshape it.")
        return cls.of_groups(mesh.get_group(1), mesh.get_group(0), inside=inside, trim=trim)

    @classmethod
    def of_groups(
        cls, node: dist.ProcessGroup, counterparts: dist.ProcessGroup, *, inside: str = "sparse", trim: bool = True
    ) -> Hierarchical:
        """Take this worker's node from one group, and from the other its counterparts in all nodes.

        Only their ranks are taken: messages go over groups of their own, whose order nothing else can disturb.
        """
        ranks = tuple(dist.get_process_group_ranks(node)), tuple(dist.get_process_group_ranks(counterparts))
        return cls(len(ranks[0]), inside, trim, ranks)

    def rejects(self, *, bounded: bool) -> bool:
        """What a node's cut leaves out."""
        return self.trim

    def join(self, group: dist.ProcessGroup | None = None, timeout_s: float = 300.0) -> Hierarchical:
        """Make the two groups of this worker.

        Raises:
            ValueError: workers cannot be dealt to nodes of that size.
        """
        everyone = dist.get_process_group_ranks(group)
        ranks = self.ranks or _ranks(everyone, dist.get_rank(group), self.ranks_per_node)
        if len(ranks[0]) * len(ranks[1]) != len(everyone):
            raise ValueError(
                f"mesh must hold the {len(everyone)} workers of the model, got {len(ranks[1])} nodes of "
                f"{len(ranks[0])}. Make both from the same ranks."
            )
        groups = groups_of(group, "hierarchical", ranks, timeout_s)
        return replace(self, ranks_per_node=len(ranks[0]), ranks=ranks, groups=groups)

    def cost(self, load: Load, world_size: int) -> Cost:
        """Two levels: inside a node and between nodes."""
        levels = self.levels(world_size)
        return cost.hierarchical(load, levels, trim=self.trim, dense_inside=self.inside == "dense")

    def levels(self, world_size: int) -> tuple[int, ...]:
        """A node's workers, and the nodes."""
        node = self.ranks_per_node or world_size
        return node, world_size // node

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """The largest of the three steps."""
        node = self.ranks_per_node or number_from("LOCAL_WORLD_SIZE", world_size, least=1)
        _, share = self._rooms(k, node)
        shares = min(numel, -(-world_size // node) * share)
        dense = 2 * (node - 1) * numel * dtype.itemsize // node if self.inside == "dense" else 0
        return max(dense, *(row_bytes(room, numel, wire, dtype) for room in (k, share, shares)))

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Sum inside the node, between nodes, and gather inside the node.

        1. *Inside*: the node's selections become its sum, the same on each of its workers, cut to the largest.
        2. *Across*: worker i of each node packs the i-th run of that sum and gathers it with its counterparts, in the
           order of nodes; the runs of a place need not cover the same entries, so they are merged.
        3. *Inside* again: the merged runs of all places are gathered, and added up in the order of places.

        What a worker sent and the node's cut dropped comes back whole; what was rounded off comes back to who rounded
        it, and for the third step, which all nodes round alike, to the first node alone.
        """
        if self.groups is None:
            raise RuntimeError("collective must join a group before it starts, got none. Call join(group) first.")
        comm, wire, capacity = context.comm, context.wire, context.capacity
        numel, dtype, device = sparse.numel, sparse.values.dtype, sparse.values.device
        if capacity is None:
            capacity = yield from agree_on_capacity(comm, sparse)
        inside, across = map(comm.within, self.groups.members)
        if self.inside == "dense":
            quantized = Quantized(sparse)
            vector = yield inside.all_reduce(sparse.dense())
            node = SparseGradient.pick(vector, vector.nonzero().squeeze(1).int())
        else:
            row, quantized = quantize_and_pack(sparse, wire, capacity, context.generator(device))
            rows = yield inside.all_gather(row)
            node = merge(unpack(rows, wire, [numel] * inside.world_size, dtype, capacity))
        room, share = self._rooms(capacity, inside.world_size)
        node = pick(node, largest_mask(node, room))
        own_share = _share(node, inside.rank, inside.world_size)
        row, own = quantize_and_pack(own_share, wire, share, context.generator(device, 1))
        rows = yield across.all_gather(row)
        summed = merge(unpack(rows, wire, [numel] * across.world_size, dtype, share))
        shares = across.world_size * share
        row, column = quantize_and_pack(summed, wire, shares, context.generator(device, 2, inside.rank))
        rows = yield inside.all_gather(row)
        out = yield None
        total = merge(unpack(rows, wire, [numel] * inside.world_size, dtype, shares))
        entered = member_mask(sparse.indices, among=node.indices)
        errors = *quantized.errors(entered), *own.errors(), *(column.errors() if across.rank == 0 else ())
        yield Outcome(summed_mean(total, comm.world_size, out), rest_of(sparse, entered), errors)

    def _rooms(self, capacity: int, node: int) -> tuple[int, int]:
        """Return the room for a node's sum, and for a worker's share of it."""
        room = capacity if self.trim else node * capacity
        return room, math.ceil(room / node)


def _share(node: SparseGradient, rank: int, world_size: int) -> SparseGradient:
    """Cut the entries of a node into equal runs, one for each of its workers."""
    place = slice(node.kept * rank // world_size, node.kept * (rank + 1) // world_size)
    return SparseGradient(node.indices[place], node.values[place], node.numel)


def _ranks(everyone: Sequence[int], rank: int, ranks_per_node: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    node = ranks_per_node or number_from("LOCAL_WORLD_SIZE", 0)
    if not node:
        raise ValueError(
            "ranks_per_node must be given where torchrun does not say it, got 0. Set hierarchical:ranks_per_node=8."
        )
    if len(everyone) % node:
        raise ValueError(
            f"ranks_per_node must divide the {len(everyone)} workers, got {node}. Give nodes of equal size."
        )
    first = rank - rank % node
    return tuple(everyone[first : first + node]), tuple(everyone[rank % node :: node])
