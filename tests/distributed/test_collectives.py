"""Every collective x every mix of counts x every world size: the mean is right, and the same bits everywhere."""

from __future__ import annotations

import datetime
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank.autotune.tuner import measure
from gaussiank.collectives import COLLECTIVES, Collective, Hierarchical, Outcome, parse_collective
from gaussiank.comm import Communicator, await_all, group_timeout_s, require_agreement
from gaussiank.cost import STRAIGHT_BYTES
from gaussiank.sparse import SparseGradient

NUMEL = 97
LOSSLESS = [
    "dense",
    "allgather",
    "allgather:ask=true",
    "split:trim=false",
    "hierarchical:ranks_per_node=1:trim=false",
    "hierarchical:ranks_per_node=2:trim=false",
]
REJECTING = [
    "split",
    "split:slack=0.5",
    "split:slack=1.5:rebalance=false",
    "leader",
    "tree",
    "hierarchical:ranks_per_node=2",
    "hierarchical:ranks_per_node=2:inside=dense",
]
SPECS = [*LOSSLESS, *REJECTING]
CASES = ["unequal", "one empty", "all empty", "full", "equal"]


def test_every_collective_is_under_contract() -> None:
    assert {spec.split(":")[0] for spec in SPECS} == set(COLLECTIVES)


def joined(spec: str, world_size: int) -> Collective:
    if world_size % 2:  # equal nodes
        spec = spec.replace("ranks_per_node=2", f"ranks_per_node={world_size}")
    if spec not in _JOINED:
        _JOINED[spec] = parse_collective(spec).join()
    return _JOINED[spec]


_JOINED: dict[str, Collective] = {}  # kept by each worker: joining makes groups


def _counts(case: str, rank: int) -> int:
    return {"unequal": 5 * rank + 3, "one empty": 0 if rank == 0 else 7, "all empty": 0, "full": NUMEL, "equal": 6}[
        case
    ]


def _part(case: str, rank: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
    generator = torch.Generator().manual_seed(100 + rank)
    indices = torch.randperm(NUMEL, generator=generator)[: _counts(case, rank)].sort().values.int()
    return SparseGradient(indices, torch.randn(len(indices), generator=generator, dtype=dtype), NUMEL)


def repeated(
    collective: Collective, part: SparseGradient, rank: int, steps: int, **settings: Any
) -> tuple[Tensor, Outcome, Tensor]:
    """Exchange the same entries step after step, with a residual of its own to draw from.

    Returns:
        Of the last step: the mean, the outcome, and what was given: entries and what was drawn.
    """
    hint = None
    for step in range(steps):
        residual = torch.randn(NUMEL, generator=torch.Generator().manual_seed(200 + rank)).to(part.values.dtype)
        residual[part.indices] = 0
        before = residual.clone()

        def take_more(indices: Tensor, residual: Tensor = residual) -> Tensor:
            drawn = residual[indices]
            residual[indices] = 0
            return drawn

        message = collective.start(part, step=step, part=1, hint=hint, take_more=take_more, **settings)
        out = torch.full((NUMEL,), 7.0, dtype=part.values.dtype)
        outcome = message.finish(out)
        hint = outcome.hint
    return out, outcome, before - residual + part.dense()


def exchange(
    rank: int, world_size: int, spec: str, case: str, asks: bool, dtype: torch.dtype, steps: int
) -> tuple[Tensor, bool, Tensor, Tensor]:
    """Exchange the same entries step after step.

    The residual is a vector of its own: what a collective draws from it enters too.

    Returns:
        Of the last step: the mean, whether it is finite, what entered from this worker, and what was sent back.
    """
    collective = joined(spec, world_size)
    part = _part(case, rank, dtype)
    capacity = None if asks else max(_counts(case, other) for other in range(world_size))
    out, outcome, given = repeated(collective, part, rank, steps, capacity=capacity)
    rejected = torch.zeros(NUMEL, dtype=dtype)
    if outcome.rejected is not None:
        rejected = outcome.rejected.check().dense()
        # what comes back is what was sent, to the bit, so that law 2 holds to the bit
        assert torch.equal(outcome.rejected.values, part.dense()[outcome.rejected.indices])
    return out, bool(outcome.finite), given - rejected, rejected


def exchange_all(rank: int, world_size: int, spec: str) -> list[Any]:
    dtypes = (torch.float32, torch.float64)
    variants = [
        *itertools.product(CASES, (False, True), dtypes, (1,)),
        ("unequal", True, torch.float32, 4),
        ("one empty", True, torch.float32, 4),
        ("unequal", False, torch.float32, 4),
    ]
    return [(variant, exchange(rank, world_size, spec, *variant)) for variant in variants]


@each("spec", SPECS)
def test_mean_of_what_entered_is_right_and_bit_identical(contract_workers: Any, spec: str) -> None:
    by_rank = contract_workers.run(exchange_all, spec)
    for results in zip(*by_rank, strict=True):
        case, _, dtype, _ = results[0][0]
        outcomes = [outcome for _, outcome in results]
        entered = torch.stack([entered for _, _, entered, _ in outcomes]).mean(0)
        for out, finite, _, rejected in outcomes:
            assert finite
            assert torch.equal(out, outcomes[0][0])
            torch.testing.assert_close(out, entered, msg=lambda text, which=results[0][0]: f"{which}: {text}")
            assert spec in REJECTING or not rejected.any()
        if spec in LOSSLESS:
            given = torch.stack([_part(case, rank, dtype).dense() for rank in range(len(outcomes))]).mean(0)
            torch.testing.assert_close(entered, given)


def outgrown(rank: int, world_size: int) -> tuple[Tensor, Tensor, int, int]:
    part, out = _part("full", rank), torch.empty(NUMEL)
    message = joined("allgather", world_size).start(part, capacity=None, hint=torch.tensor([20 + 8 * 8, -1]))
    outcome = message.finish(out)
    assert outcome.rejected is not None
    assert outcome.hint is not None
    rejected = outcome.rejected.check()
    sent = part.dense() - rejected.dense()
    assert sent.abs().masked_fill(sent == 0, 9.0).min() >= rejected.values.abs().max()
    return out, sent, rejected.kept, int(outcome.hint[0])


def test_a_count_that_outgrows_its_room_sends_back_the_smallest(workers: Any) -> None:
    results = workers.run(outgrown)
    mean = torch.stack([sent for _, sent, _, _ in results]).mean(0)
    for out, _, rejected, hint in results:
        torch.testing.assert_close(out, mean)
        assert rejected == NUMEL - 18  # a quarter more bytes than 8 entries took, and the spare ones: 169
        assert hint == 20 + 8 * NUMEL  # the next exchange has room for all


def given(rank: int, world_size: int, spec: str, parts: list[dict[int, float]], numel: int) -> list[float]:
    own = parts[rank]
    sparse = SparseGradient(torch.tensor(list(own), dtype=torch.int32), torch.tensor(list(own.values())), numel)
    out = torch.empty(numel)
    joined(spec, world_size).start(sparse, capacity=None).finish(out)
    return out.tolist()


@each("spec", LOSSLESS)
@each(
    ("parts", "numel", "mean"),
    [
        ([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 10.0, 2: 20.0}], 4, [5.5, 1.0, 11.5, 0.0]),
        ([{0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, {3: 10.0}], 6, [0.5, 1.0, 1.5, 7.0, 2.5, 0.0]),
        ([{0: 5.0, 2: 7.0}, {0: -1.0, 1: -2.0, 2: -3.0, 3: -4.0}], 4, [2.0, -1.0, 2.0, -2.0]),
        ([{}, {1: 4.0}], 3, [0.0, 2.0, 0.0]),
        ([{}, {}], 3, [0.0, 0.0, 0.0]),
    ],
)
def test_vectors_of_the_paper(two_workers: Any, spec: str, parts: Any, numel: int, mean: list[float]) -> None:
    assert two_workers.run(given, spec, parts, numel) == [mean, mean]


def poisoned(rank: int, world_size: int, spec: str) -> tuple[bool, bool]:
    value = float("nan") if rank == world_size - 1 else 1.0
    sparse = SparseGradient(torch.tensor([2 if rank else 3], dtype=torch.int32), torch.tensor([value]), 5)
    out = torch.empty(5)
    finite = joined(spec, world_size).start(sparse, capacity=1).finish(out).finite
    return bool(finite), bool(out[2 if world_size > 1 else 3].isnan())


@each("spec", SPECS)
def test_nan_of_one_worker_reaches_all(workers: Any, spec: str) -> None:
    assert workers.run(poisoned, spec) == [(False, True)] * workers.world_size


# ---------------------------------------------------------------------- what they send


def kernel_sent_bytes() -> int:
    """Bytes that this process has handed to the kernel to write, sockets included."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def accounted_and_real(rank: int, world_size: int, spec: str, steps: int) -> tuple[int, int]:
    collective, numel, k = joined(spec, world_size), 50_000, 1000
    generator = torch.Generator().manual_seed(rank)
    indices = torch.randperm(numel, generator=generator)[:k].sort().values.int()
    sparse = SparseGradient(indices, torch.randn(k, generator=generator), numel)
    dist.barrier()
    before, accounted, hint = kernel_sent_bytes(), 0, None
    for step in range(steps):
        message = collective.start(sparse, capacity=k, step=step, hint=hint)
        hint = message.finish(torch.empty(numel)).hint
        accounted += message.sent_bytes
    return accounted, kernel_sent_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process writes")
@each("spec", SPECS)
def test_sent_bytes_are_those_the_kernel_counts(workers: Any, spec: str) -> None:
    steps = 2 * workers.world_size  # every worker leads as often
    results = workers.run(accounted_and_real, spec, steps)
    for accounted, real in results:
        framing = 1000 * steps * (workers.world_size - 1)
        assert accounted <= real <= 1.01 * accounted + framing
    if "trim=false" not in spec:
        name = (
            spec.replace("ranks_per_node=2", f"ranks_per_node={workers.world_size}") if workers.world_size % 2 else spec
        )
        predicted = parse_collective(name).traffic(50_000, 1000, workers.world_size).sent_bytes
        mean = sum(accounted for accounted, _ in results) / steps / workers.world_size
        assert mean == pytest.approx(predicted, abs=workers.world_size)


def test_all_gather_bytes_are_payload_times_peers(workers: Any) -> None:
    sent = [accounted for accounted, _ in workers.run(accounted_and_real, "allgather", 1)]
    assert sent == [(workers.world_size - 1) * (20 + 1000 * 8)] * workers.world_size


def both_ways(rank: int, world_size: int, length: int) -> tuple[bool, list[int]]:
    straight, ring = Communicator(), Communicator()
    row = torch.arange(length).add_(7 * rank).to(torch.uint8)
    rows = [straight.all_gather(row).wait(), ring.all_gather(row, straight=False).wait()]
    expected = torch.stack([torch.arange(length).add_(7 * peer).to(torch.uint8) for peer in range(world_size)])
    return all(torch.equal(one, expected) for one in rows), [straight.sent_bytes, ring.sent_bytes]


@each("all_bytes", [8, STRAIGHT_BYTES, STRAIGHT_BYTES + 8])
def test_rows_are_the_same_whether_they_go_straight_or_round_a_ring(workers: Any, all_bytes: int) -> None:
    length = all_bytes // workers.world_size
    for same, sent_bytes in workers.run(both_ways, length):
        assert same
        assert sent_bytes == [(workers.world_size - 1) * length] * 2


# ---------------------------------------------------------------------- nodes, link, agreement


def of_mesh(rank: int, world_size: int) -> tuple[list[str], bool]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "workers"))
    by_mesh, by_number = Hierarchical.of_mesh(mesh).join(), Hierarchical(ranks_per_node=2).join()
    part = _part("unequal", rank)
    outs = [torch.empty(NUMEL), torch.empty(NUMEL)]
    for collective, out in zip((by_mesh, by_number), outs, strict=True):
        collective.start(part, capacity=18).finish(out)
    messages = []
    for wrong in (
        lambda: Hierarchical.of_mesh(init_device_mesh("cpu", (4,))),
        lambda: Hierarchical.of_groups(dist.group.WORLD, dist.group.WORLD).join(),  # type: ignore[arg-type]
        lambda: Hierarchical(ranks_per_node=3).join(),
        lambda: Hierarchical().join(),
        lambda: Hierarchical(ranks_per_node=2).start(part, capacity=18),
    ):
        try:
            wrong()
        except (ValueError, RuntimeError) as error:
            messages.append(str(error))
    return messages, torch.equal(*outs)


def test_nodes_of_a_mesh(four_workers: Any) -> None:
    for messages, same in four_workers.run(of_mesh):
        assert same
        assert messages == [
            "mesh must have two dimensions, nodes and their workers, got 1. Reshape it.",
            "mesh must hold the 4 workers of the model, got 4 nodes of 4. Make both from the same ranks.",
            "ranks_per_node must divide the 4 workers, got 3. Give nodes of equal size.",
            "ranks_per_node must be given where torchrun does not say it, got 0. Set hierarchical:ranks_per_node=8.",
            "collective must join a group before it starts, got none. Call join(group) first.",
        ]


def measured(rank: int, world_size: int) -> tuple[float, float, float]:
    link = measure()
    return link.latency_s, link.bytes_per_s, link.select_s


def test_all_workers_measure_one_link(workers: Any) -> None:
    links = workers.run(measured)
    assert links == [links[0]] * workers.world_size
    if workers.world_size > 1:
        assert 0 < links[0][0] < 1
        assert 1e5 < links[0][1] < 1e12
        assert 1e-11 < links[0][2] < 1e-5
    else:
        assert links[0] == (0.0, float("inf"), 0.0)


def disagree(rank: int, world_size: int) -> str:
    require_agreement({"density": 0.001, "scope": "bucket"})
    try:
        require_agreement({"density": 0.001 if rank != 1 else 0.01, "scope": "bucket"})
    except ValueError as error:
        return str(error)
    return "agreed"


def test_disagreement_names_field_and_rank(workers: Any) -> None:
    expected = (
        "agreed"
        if workers.world_size == 1
        else "density must be the same on every worker, got '0.001' on rank 0 and '0.01' on rank 1. "
        "Start all workers with the same settings."
    )
    assert workers.run(disagree) == [expected] * workers.world_size


def compressing_alone(rank: int, world_size: int) -> tuple[float, str]:
    """The last worker does not call; who does gives up after the time-out of DDP's own group."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=0.5))
    model = DistributedDataParallel(nn.Linear(3, 1), process_group=group)
    message = ""
    if rank < world_size - 1:
        try:
            gaussiank.compress(model, timeout_s=7.0)
        except RuntimeError as error:
            message = str(error)
    dist.barrier()
    gaussiank.compress(DistributedDataParallel(nn.Linear(3, 1)))  # what was given up does not count
    return group_timeout_s(group), message


def test_a_worker_that_does_not_compress_is_named(three_workers: Any) -> None:
    expected = (
        "gaussiank.compress must be called on every worker of the group, got no call from rank 2 in 0.5 s. Call it on "
        "each, as often and in the same order, and look for an error there."
    )
    assert three_workers.run(compressing_alone) == [(0.5, expected), (0.5, expected), (0.5, "")]


def late(rank: int, world_size: int) -> list[str]:
    """The last worker calls once the first has warned of it."""
    store = dist.distributed_c10d._get_default_store()
    if rank == world_size - 1:
        store.get("the first has warned")
        await_all()
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said: list[str] = []

        def say(message: Warning | str, *_: Any) -> None:
            said.append(str(message))
            if rank == 0:
                store.set("the first has warned", "")

        warnings.showwarning = say  # type: ignore[assignment]
        await_all(patience_s=0.01 if rank == 0 else 60.0)
        return said


def test_a_late_worker_is_waited_for_and_named_once(three_workers: Any) -> None:
    said, *others = three_workers.run(late)
    assert others == [[], []]
    assert said == [
        "gaussiank.compress waits for rank 2, which has not called it after 0.01 s. Every worker of the group must. "
        "The wait ends after 60 s, the process group's time-out."
    ]
