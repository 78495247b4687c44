"""Every collective x wires x mixes of counts x compressors: what is rounded off is kept, and all workers agree."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.covering import covering
from tests.distributed import test_collectives as contract
from tests.distributed.conftest import WORLD_SIZES
from tests.distributed.test_collectives import CASES, NUMEL, SPECS, joined
from tests.distributed.test_hook import Given, Totals, assert_nothing_lost, feed, run
from tests.each import each
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.collectives import COLLECTIVES, EXACT
from gaussiank.collectives.packing import quantize
from gaussiank.compressors import COMPRESSORS
from gaussiank.sparse import SparseGradient

ON_GRID = ["raw+fp32", "rice+bf16-rice", "chunks+bf16", "eliasfano+fp16", "chunks12+8bit", "rice+4bit"]
WIRES = [*ON_GRID, "chunks12+2bit", "rice+sign"]
STOCHASTIC = "rice+8bit+stochastic"
COLLECTIVES_UNDER_TEST = [
    spec for spec in SPECS if spec not in ("split:slack=0.5", "hierarchical:ranks_per_node=1:trim=false")
]


def test_every_code_and_collective_is_under_contract() -> None:
    assert {spec.split(":")[0] for spec in COLLECTIVES_UNDER_TEST} == set(COLLECTIVES)
    wires = [Wire.parse(text) for text in WIRES]
    assert {wire.index for wire in wires} == set(INDEX_CODES) - {"seed"}
    assert {wire.values for wire in wires} == set(VALUE_CODES) - {"fp64"}


@pytest.mark.parametrize(("rows", "factors"), [("EXCHANGES", 6), ("TRAININGS", 4)])
def test_any_two_settings_meet(rows: str, factors: int) -> None:
    """Any collective and wire in an exchange; any compressor, wire, collective and number of workers in training."""
    chosen = globals()[rows]
    for one, other in itertools.combinations(range(factors), 2):
        met = {(row[one], row[other]) for row in chosen}
        assert met == set(itertools.product({row[one] for row in chosen}, {row[other] for row in chosen}))


def part_of(case: str, rank: int, dtype: torch.dtype) -> SparseGradient:
    return contract._part(case, rank, dtype)


def exchange(
    rank: int, world_size: int, spec: str, wire: Wire, case: str, dtype: torch.dtype, steps: int, bounded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange the same entries step after step; of the last, return mean, what entered, and what was rounded off."""
    collective, part = joined(spec, world_size), part_of(case, rank, dtype)
    capacity = max(contract._counts(case, other) for other in range(world_size)) if bounded else None
    out, outcome, entered = contract.repeated(collective, part, rank, steps, capacity=capacity, wire=wire)
    assert bool(outcome.finite)
    off = torch.zeros(NUMEL, dtype=dtype)
    for error in outcome.rounded_off:
        off += error.check().dense()
    if outcome.rejected is not None:
        rejected = outcome.rejected.check()
        assert torch.equal(rejected.values, part.dense()[rejected.indices])  # whole, to the bit
        entered -= rejected.dense()
        if world_size == 1:
            assert not off[rejected.indices].any()
    return out, entered - off, off


WIRES_UNDER_TEST = [*WIRES, STOCHASTIC]
EXCHANGES = covering(
    COLLECTIVES_UNDER_TEST, WIRES_UNDER_TEST, CASES, (torch.float32, torch.float64), (1, 2), (True, False)
)


def exchange_all(rank: int, world_size: int, spec: str) -> list[Any]:
    rows = [row[1:] for row in EXCHANGES if row[0] == spec]
    return [(row, exchange(rank, world_size, spec, Wire.parse(row[0]), *row[1:])) for row in rows]


@each("spec", COLLECTIVES_UNDER_TEST)
def test_mean_is_what_entered_without_what_was_rounded_off(contract_workers: Any, spec: str) -> None:
    rounding, expected = set(), set()
    for results in zip(*contract_workers.run(exchange_all, spec), strict=True):
        wire, case, _, steps, _ = results[0][0]
        outcomes = [outcome for _, outcome in results]
        entered = torch.stack([entered for _, entered, _ in outcomes]).mean(0)
        for out, _, off in outcomes:
            assert torch.equal(out, outcomes[0][0])
            torch.testing.assert_close(out, entered, msg=lambda text, which=results[0][0]: f"{which}: {text}")
            if off.any():
                rounding.add(wire)
        world_size = len(outcomes)
        asked = [steps % world_size] if spec == "leader" else range(world_size)  # whose choice counts, at the last step
        if wire != "raw+fp32" and any(contract._counts(case, rank) for rank in asked):
            expected.add(wire)
    silent = spec == "dense" or (spec == "tree" and contract_workers.world_size == 1)
    assert rounding == (set() if silent else expected)


def poisoned(rank: int, world_size: int, spec: str) -> list[bool]:
    seen = []
    for text in WIRES:
        values = torch.full((6,), 1.0 + rank)
        if rank == world_size - 1:
            values[2] = torch.nan
        sparse = SparseGradient(torch.arange(6, dtype=torch.int32), values, 9)
        out = torch.empty(9)
        finite = joined(spec, world_size).start(sparse, wire=Wire.parse(text), capacity=6).finish(out).finite
        seen.append(not finite and not bool(out.isfinite().all()))
    return seen


@each("spec", COLLECTIVES_UNDER_TEST)
def test_nan_of_one_worker_reaches_all(three_workers: Any, spec: str) -> None:
    assert three_workers.run(poisoned, spec) == [[True] * len(WIRES)] * 3


@each("text", [*WIRES, STOCHASTIC])
def test_an_entry_and_its_rounding_error_are_the_value_to_the_bit(text: str) -> None:
    wire = Wire.parse(text)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(5)).exp() - 0.5
    sparse = SparseGradient(torch.arange(1000, dtype=torch.int32), values, 1000)
    given = quantize(sparse, wire, torch.Generator().manual_seed(3))
    if wire.exact:
        assert given.error is None
        return
    assert given.error is not None
    back = given.sparse.values + given.error
    if wire.values in ("2bit", "sign"):
        torch.testing.assert_close(back, values, rtol=2e-7, atol=1e-7)
    else:
        assert torch.equal(back, values)
    assert torch.equal(quantize(sparse, wire, torch.Generator().manual_seed(3)).sparse.values, given.sparse.values)


def sizes(rank: int, world_size: int) -> list[tuple[int, int, int]]:
    """Exchange clustered entries three times, then scattered ones: bytes sent, entries that came back, and the most."""
    wire, numel, k, hint, found = Wire("rice", "bf16"), 100_000, 500, None, []
    generator = torch.Generator().manual_seed(rank)
    places = [torch.randperm(2000, generator=generator)[:k]] * 3 + [torch.randperm(numel, generator=generator)[:k]] * 2
    for place in places:
        sparse = SparseGradient(place.sort().values.int(), torch.randn(k, generator=generator), numel)
        message = joined("allgather", world_size).start(
            sparse, wire=wire, capacity=k, hint=hint, take_more=lambda at: at * 0.0
        )
        outcome = message.finish(torch.empty(numel))
        hint = outcome.hint
        kept_back = 0 if outcome.rejected is None else outcome.rejected.kept
        found.append((message.sent_bytes // (world_size - 1), kept_back, wire.max_bytes(k, numel) + 8))
    return found


def test_rows_take_what_clustered_entries_need(three_workers: Any) -> None:
    for (first, none, most), (second, _, _), (third, _, _), (late, back, _), (last, all_fit, _) in three_workers.run(
        sizes
    ):
        assert (first, none) == (most, 0)  # nothing is known yet
        assert second == third < 0.8 * most
        assert late == third
        assert 0 < back < 250  # they do not fit, for one step
        assert third < last <= most
        assert all_fit == 0


def changing(rank: int, world_size: int) -> list[tuple[int, int, Tensor, Tensor]]:
    """Split entries of like magnitude three times, then unlike ones: bytes sent, entries cut, mean, what entered."""
    numel, k, hint, found = 100_000, 500, None, []
    generator = torch.Generator().manual_seed(rank)
    like = [1 + torch.rand(k, generator=generator) / 8 for _ in range(3)]
    for values in [*like, *[(8 * torch.randn(k, generator=generator)).exp() for _ in range(2)]]:
        indices = torch.randperm(numel, generator=generator)[:k].sort().values.int()
        sparse = SparseGradient(indices, values, numel)
        message = joined("split", world_size).start(sparse, wire=Wire(), capacity=k, hint=hint)
        out = torch.empty(numel)
        outcome = message.finish(out)
        hint, entered = outcome.hint, sparse.dense()
        for part in (outcome.rejected, *outcome.rounded_off):
            entered -= 0 if part is None else part.dense()
        found.append((message.sent_bytes, 0 if outcome.rejected is None else outcome.rejected.kept, out, entered))
    return found


def test_rows_of_a_split_take_what_the_last_ones_took_and_lose_nothing(three_workers: Any) -> None:
    steps = list(zip(*three_workers.run(changing), strict=True))
    for step in steps:
        mean = torch.stack([entered for *_, entered in step]).double().mean(0)
        for _, _, out, _ in step:
            assert torch.equal(out, step[0][2])
            torch.testing.assert_close(out.double(), mean, rtol=1e-6, atol=1e-6)
    sent = [step[0][0] for step in steps]
    cut = [sum(cut for _, cut, _, _ in step) for step in steps]
    assert sent[2] < 0.65 * sent[0]  # nothing is known at the first
    assert sent[3] < 1.05 * sent[2] < sent[4]  # one step with too little room
    assert cut[3] > 1.2 * cut[4]


def narrow(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
    """Split short vectors into regions of unlike widths, one of them a power of two: mean, and what entered."""
    found, generator = [], torch.Generator().manual_seed(rank)
    for text in ("eliasfano+fp32", "eliasfano+bf16-rice"):
        for numel in range(16 * world_size - 4, 16 * world_size + 5):
            k = 4 * (world_size - 1)
            indices = torch.randperm(numel, generator=generator)[:k].sort().values.int()
            sparse = SparseGradient(indices, torch.randn(k, generator=generator), numel)
            hint = None
            for _ in range(3):  # borders move
                message = joined("split", world_size).start(sparse, wire=Wire.parse(text), capacity=k, hint=hint)
                out = torch.empty(numel)
                outcome = message.finish(out)
                hint, entered = outcome.hint, sparse.dense()
                for part in (outcome.rejected, *outcome.rounded_off):
                    entered -= 0 if part is None else part.dense()
                found.append((out, entered))
    return found


def test_regions_of_any_width_send_rows_of_one_length(three_workers: Any, four_workers: Any) -> None:
    for group in (three_workers, four_workers):
        for step in zip(*group.run(narrow), strict=True):
            mean = torch.stack([entered for _, entered in step]).double().mean(0)
            for out, _ in step:
                torch.testing.assert_close(out.double(), mean, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------- in DDP

TRAINED = [
    "allgather",
    "split",
    "split:trim=false",
    "leader",
    "tree",
    "hierarchical:ranks_per_node=1",
    "auto:mbit=10:latency_us=100:candidates=dense+allgather+split+tree",
]
TRAININGS = covering((*COMPRESSORS, "gaussiank:mode=published"), WIRES_UNDER_TEST, TRAINED, (*WORLD_SIZES, 8))


def train_all(rank: int, world_size: int, spec: str) -> list[Totals]:
    results = []
    for compressor, wire, *where in TRAININGS:
        if where == [spec, world_size]:
            how = {"density": 0.05, "collective": spec, "compressor": compressor, "wire": wire}
            results.append(run(rank, world_size, 2, {"bucket_cap_mb": 0.001}, how, torch.float32))
    return results


@each("spec", TRAINED)
def test_nothing_is_lost(contract_workers: Any, spec: str) -> None:
    for results in zip(*contract_workers.run(train_all, spec), strict=True):
        assert_nothing_lost(list(results))


def one_worker_law(rank: int, world_size: int, how: dict[str, Any]) -> list[bool]:
    """Train a worker alone: residual + all means == all gradients, which are multiples of 1/64, to the bit."""
    same = []
    for text in ON_GRID:
        model = DDP(Given())
        compression = gaussiank.compress(model, density=0.02, wire=text, **how)
        total = {name: torch.zeros_like(parameter) for name, parameter in model.module.named_parameters()}
        for step in range(3):
            model.zero_grad()
            fed = feed(rank, step)
            model(fed).backward()
            for name, parameter in model.module.named_parameters():
                assert parameter.grad is not None
                total[name] += fed[name] - parameter.grad
        same.append(all(torch.equal(compression.feedback.residual(name), total[name]) for name in total))
    return same


def test_the_law_holds_to_the_bit_for_one_worker(worker_groups: Any) -> None:
    from tests.distributed.conftest import _started

    group = worker_groups.get(1) or _started(worker_groups, 1)
    assert group.run(one_worker_law, {}) == [[True] * len(ON_GRID)]


def misused(rank: int, world_size: int) -> list[str]:
    messages = []
    for wire in ("rice", "rice+bf17", "gzip+bf16", "seed+bf16", "raw+fp64", "rice+bf16" if rank else EXACT):
        try:
            gaussiank.compress(DDP(Given()), wire=wire)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_misuse_gets_one_sentence(two_workers: Any) -> None:
    beginnings = [
        "wire must be index+values or index+values+rounding, got 'rice'.",
        "values must be one of ",
        "index must be one of ",
        "wire must send the indices of TopK(), got seed+bf16.",
        "wire must carry float32 gradients, got raw+fp64. Write raw+fp32: it sends float64 ones whole.",
        "wire must be the same on every worker, got 'raw+fp32' on rank 0 and 'rice+bf16' on rank 1.",
    ]
    for messages in two_workers.run(misused):
        assert [message[: len(start)] for message, start in zip(messages, beginnings, strict=True)] == beginnings
