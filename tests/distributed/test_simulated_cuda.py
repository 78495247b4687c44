"""The reducer on a simulated CUDA device: the bits of a CPU, no race, no early free, one order of messages."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.covering import covering
from tests.distributed.conftest import Workers
from tests.simulated_cuda import CUDA, SimulatedCuda
from torch import Tensor

import gaussiank
from gaussiank.autotune import parse_policy
from gaussiank.codec import HEADER_BYTES, INDEX_CODES, VALUE_CODES, Wire
from gaussiank.codec.indices import DeviceCode
from gaussiank.collectives import parse_collective
from gaussiank.comm import Communicator, Executor, Work, executor_of
from gaussiank.comm.executor import _Queued
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.ops import narrow
from gaussiank.reducer import AdamRows, GradientReducer, Settings
from gaussiank.reducer import reducer as reducer_module
from gaussiank.schedule import Constant
from gaussiank.sparse import SparseGradient

LAYOUT = Layout(("a", "b", "c"), (2000, 1, 1999))
COLLECTIVES = ("allgather", "split", "tree", "leader", "hierarchical:ranks_per_node=2", "dense")
WIRES = ("chunks+bf16", "raw+fp32", "chunks12+2bit")
SCOPES = ("bucket", "layer", "model")
COMPRESSORS = (
    *("topk", "gaussiank", "dense:values=bf16"),
    *("dense", "randomk:shared=true", "randomk", "trimmedtopk", "dgc", "mstopk", "sidco", "chunktopk"),
)
STEPS = 3
STEP = _Queued.step
Case = tuple[str, str, str, str, bool]

CARRIED = {
    "split": "split.py:_cut packing.py:merge packing.py:pick packing.py:trailers split.py:_rebalanced split.py:_errors",
    "tree": "packing.py:merge packing.py:pick",
    "leader": "leader.py:program leader.py:sums packing.py:pick sections.py:read_indices",
    "hierarchical": "packing.py:merge packing.py:pick",
}
"""Which functions of collectives of several messages wait: what has arrived decides what is sent next."""

ROWS = "payload.py:counts packing.py:rest_of"
"""Which of all of them do: how many entries a row holds, and whether any goes back."""

WAITS = {
    "topk": "",
    "trimmedtopk": "",
    "dense": "",
    # infinities and NaN go first: whether there are any decides what is selected
    "randomk": "selection.py:take",
    # compares a draw that is not sent with what it stands for
    "randomk:shared=true": "selection.py:take packing.py:at_drawn seed.py:encode",
    # how many entries are above a threshold decides the next shape, or the next threshold
    "dgc": "dgc.py:take dgc.py:select compressor.py:put_back reference.py:accumulate_threshold",
    "gaussiank": "selection.py:take gaussiank.py:_normal_fit gaussiank.py:take gaussiank.py:_bracketed"
    " reference.py:count_above reference.py:accumulate_threshold compressor.py:threshold compressor.py:put_back",
    "mstopk": "selection.py:take mstopk.py:_bounds mstopk.py:_mean mstopk.py:select",
    "chunktopk": "selection.py:take reference.py:chunk_topk reference.py:_without_surplus",
    # no bound on the count: payloads say how long they are
    "sidco": "selection.py:take sidco.py:_exponential sidco.py:select all_gather.py:_largest all_gather.py:_padded"
    " packing.py:agree_on wire.py:decode payload.py:counts native.py:framed_sizes",
}
"""Which functions wait for the device in the hook, by compressor."""


def gradients(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(-99, 100, (3, LAYOUT.numel), generator=generator).float().prod(0) * 2.0**-20


def train(rank: int, case: Case, device: SimulatedCuda | None, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Means of every step and the residuals at the end."""
    collective, compressor, wire, scope, rows = case
    settings = Settings(
        schedule=Constant(0.01),
        compressor=parse_compressor(compressor),
        collective=parse_collective(collective),
        wire=Wire(*wire.split("+")),
        scope=scope,
        precondition=AdamRows() if rows else None,
    )
    parameters = dict(zip(LAYOUT.names, LAYOUT.numels, strict=True))
    reducer = GradientReducer(parameters, settings, group=group, device=CUDA if device else None)
    ends = []
    for step in range(STEPS):
        parts = [gradients(rank, step)]
        if scope == "model" and not reducer.compressor.sends_all:
            parts = [*parts[0].split(2000)]
        grads = [device.tensor(one) if device else one.clone() for one in parts]
        reducer.begin()
        dense = reducer.dense
        done = reducer.reduce_dense(lambda: LAYOUT, grads[0]) if dense else reducer.reduce_sparse(LAYOUT, grads)
        reducer.seal()
        gc.collect()  # the hook has returned: nothing but what is held is left
        done.wait()  # DDP, at the end of backward
        if device:
            device.end_step()
        ends.append(torch.cat([getattr(one, "on_host", one) for one in grads]))
    reducer.settle()
    residuals = reducer.feedback.residuals(LAYOUT)
    return [*ends, getattr(residuals, "on_host", residuals)]


def compare(
    rank: int, world_size: int, cases: list[Case], group: dist.ProcessGroup | None = None
) -> dict[Case, list[tuple[str, str]]]:
    """What was found in each case, and whether bits differ."""
    found = {}
    gc.freeze()  # so that a collection looks at little
    for case in cases:
        with torch.no_grad():
            plain = train(rank, case, None, group)
            device = SimulatedCuda()
            with device.installed():
                simulated = train(rank, case, device, group)
                findings = list(device.findings)
            findings += [("odd row", f"of {size} bytes") for size in device.gathered_bytes if size % 128]
        if any(one.numpy().tobytes() != two.numpy().tobytes() for one, two in zip(plain, simulated, strict=True)):
            findings.append(("bits", "differ from those of the CPU"))
        if findings:
            found[case] = findings
    gc.unfreeze()
    return found


def cases() -> list[Case]:
    if os.environ.get("GAUSSIANK_CUDA") == "all":
        chosen = [*itertools.product(COLLECTIVES, COMPRESSORS, WIRES, SCOPES, (False, True))]
    else:
        chosen = [*covering(COLLECTIVES, COMPRESSORS[:3], WIRES, SCOPES, (False, True))]
        chosen += [("allgather", compressor, "chunks+bf16", "bucket", False) for compressor in COMPRESSORS[3:]]
    return chosen


def test_every_way_of_a_gradient_is_safe_on_cuda_and_waits_only_where_the_table_says(two_workers: Workers) -> None:
    found, _ = two_workers.run(compare, cases())
    unknown = {case: rest for case, findings in found.items() if (rest := [*unexplained(case, findings)])}
    assert unknown == {}


def unexplained(case: Case, findings: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    allowed = WAITS[case[1].removesuffix(":values=bf16")].split()
    carried = CARRIED.get(case[0].partition(":")[0])
    if carried is not None and not case[1].startswith("dense"):
        allowed += carried.split() + ROWS.split()
    for kind, text in findings:
        if kind != "host wait" or not any(text.endswith(place) for place in allowed):
            yield kind, text


FAULTS = {
    "freed in use": ("allgather", "topk", "chunks+bf16", "model", False),  # nobody holds what exchanges still use
    "by a thread of its own": ("split", "topk", "chunks+bf16", "bucket", False),
    "may run beside": ("hierarchical:ranks_per_node=2", "topk", "chunks+bf16", "bucket", True),
    "is the first message": ("tree", "topk", "chunks+bf16", "bucket", False),
}


def faulty(rank: int, world_size: int, fault: str) -> list[str]:
    """What is found when the reducer has a fault."""
    with pytest.MonkeyPatch.context() as patch:
        if fault == "freed in use":
            patch.setattr(GradientReducer, "_hold", lambda *_, **__: None)
        elif fault == "by a thread of its own":
            patch.setattr(reducer_module, "executor_of", lambda group, timeout_s, _: executor_of(group, timeout_s))
        elif fault == "may run beside":
            patch.setattr(_Queued, "step", lambda task, group, **how: STEP(task, group, **{**how, "behind": None}))
        else:
            patch.setattr(Executor, "_open", lambda *_: None)
        group = dist.new_group(list(range(world_size)))
        found = compare(rank, world_size, [FAULTS[fault]], group)
    return [f"{kind}: {text}" for findings in found.values() for kind, text in findings if kind != "host wait"]


def test_the_simulated_device_sees_what_is_let_go_too_early_and_what_has_no_order(two_workers: Workers) -> None:
    for fault in FAULTS:
        for findings in two_workers.run(faulty, fault):
            assert findings
            assert all(fault in one for one in findings if not one.startswith("thread wait"))
            if fault == "freed in use":
                assert len(findings) >= 3  # the indices, the rounding errors, and the joined gradient


def test_the_simulated_device_sees_waits_and_two_devices() -> None:
    number = torch.tensor(1.0)
    for ops, kinds in (
        (
            (lambda one: bool(one.any()), torch.Tensor.nonzero, lambda one: one[one > 1], torch.Tensor.unique),
            "host wait",
        ),
        ((lambda one: torch.where(one > 1, number, one),), "host wait"),
        ((lambda one: one + torch.ones(2), lambda one: torch.cat([one, torch.ones(2)])), "two devices"),
        ((lambda one: one + number, lambda one: one.topk(1), lambda one: torch.where(one > 1, 0.5, one)), None),
    ):
        for op in ops:
            with SimulatedCuda().installed() as device:
                op(device.tensor(torch.ones(2)))
            assert {kind for kind, _ in device.findings} == ({kinds} if kinds else set())


PAYLOADS = [
    Wire(index, values)
    for index, code in INDEX_CODES.items()
    for values, own in VALUE_CODES.items()
    if isinstance(code, DeviceCode) and index != "seed" and not own.varies
]
ON_THE_HOST = [Wire("rice", "2bit"), Wire("eliasfano", "bf16"), Wire("chunks", "bf16-rice")]


def test_what_a_cpu_wrote_is_read_on_cuda_and_the_reverse_and_the_host_waits_for_no_device_code() -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = ((70_000, 900, 901), (5000, 0, 3), (700, 700, 700))
    for wire, (numel, kept, room) in itertools.product([*PAYLOADS, *ON_THE_HOST], sizes):
        indices = torch.randperm(numel, generator=generator)[:kept].sort().values.int()
        values = torch.randn(kept, generator=generator, dtype=torch.float64 if wire.values == "fp64" else torch.float32)
        values[:3] = torch.tensor([torch.nan, -torch.inf, torch.inf])[:kept]
        sent = wire.encode(SparseGradient(indices, wire.round(values), numel), capacity=room)
        with torch.no_grad(), SimulatedCuda().installed() as device:
            rounded = wire.round(device.tensor(values))
            payload = wire.encode(SparseGradient(device.tensor(indices), rounded, numel), capacity=room)
            arrived = wire.decode(device.tensor(sent), numel, capacity=room, dtype=values.dtype)
            where, what = arrived.indices.on_host, arrived.values.on_host
        assert {kind for kind, _ in device.findings} == ({"host wait"} if wire in ON_THE_HOST else set()), wire
        assert torch.equal(payload.on_host[HEADER_BYTES:], sent[HEADER_BYTES:]), wire
        for got, want in zip(
            (wire.decode(payload.on_host, numel), SparseGradient(where[:kept], what[:kept], numel)),
            [wire.decode(sent, numel)] * 2,
            strict=True,
        ):
            assert torch.equal(got.indices, want.indices), wire
            there, here = (one.values.nan_to_num(nan=7e30, posinf=8e30, neginf=-8e30) for one in (got, want))
            assert there.numpy().tobytes() == here.numpy().tobytes(), wire


LAUNCHES = {2: 126, 8: 282, 64: 1738}
"""Kernels of one bucket, there and back, by number of workers: topk, allgather and chunks+bf16, in torch's own ops.

Fewer are welcome: write them here and in docs/gpu.md."""


MOST_BYTES = {None: 8.2, torch.bfloat16: 4.2}
"""A parameter, held between two steps beside the gradient, which is DDP's: two buffers of residuals, of float32 by
default, and the last exchange. Residuals of 16 bits have a table of random bits, 16 MiB a device, which is left out."""


def launches(rank: int, world_size: int) -> tuple[dict[int, int], dict[torch.dtype | None, float]]:
    """Count them, and what is held; one worker's row arrives as often as if so many had sent it."""
    alone = [dist.new_group([one]) for one in range(world_size)][rank]
    settings = Settings(Constant(0.001), parse_compressor("topk"), wire=Wire("chunks", "bf16"))
    counted, held, plain, numel = {}, {}, Communicator.all_gather, 1 << 16
    for workers, dtype in [*((workers, None) for workers in LAUNCHES), (2, torch.bfloat16)]:
        settings = replace(settings, residual_dtype=dtype)
        with pytest.MonkeyPatch.context() as patch, SimulatedCuda().installed() as device, torch.no_grad():
            patch.setattr(Communicator, "all_gather", lambda *given, workers=workers: _repeated(plain(*given), workers))
            patch.setattr(narrow, "_table", narrow._table.__wrapped__)  # made anew each time, and let go
            reducer = GradientReducer({"a": numel}, settings, group=alone, device=CUDA)
            for _ in range(2):
                before, grad = device.launches, device.tensor(torch.linspace(-1, 1, numel).sin_())
                reducer.begin()
                done = reducer.reduce_sparse(Layout(("a",), (numel,)), [grad])
                reducer.seal()
                done.wait()
                device.end_step()
                if dtype is None:
                    counted[workers] = device.launches - before
            del grad, done
            gc.collect()
            if workers == 2:
                held[dtype] = device.held_bytes / numel - 4
    return counted, held


def _repeated(work: Work[Tensor], workers: int) -> Work[Tensor]:
    return Work(work.works, work.result.expand(workers, -1), work.sent)


def test_a_bucket_launches_and_holds_no_more_than_is_written_down(two_workers: Workers) -> None:
    for counted, held in two_workers.run(launches):
        assert all(counted[workers] <= most for workers, most in LAUNCHES.items()), counted
        assert all(most - 0.2 < held[dtype] <= most for dtype, most in MOST_BYTES.items()), held


LOCAL: list[dict[str, Any]] = [
    {"compressor": "topk", "wire": "chunks12+2bit"},
    {"compressor": "topk", "wire": "chunks12+2bit", "sync_delay": 1, "fragments": 2, "scope": "layer"},
    {"collective": "split", "mixing": 0.5, "sync_delay": 1, "residual_dtype": torch.bfloat16},
    {"density": 1.0},
    {"offload": "cpu"},
]
LOCAL_WAITS = {
    "local": "",  # what workers tell each other in a round: how long a difference is, a hash of the agreed weights
    "codec": "wire.py:encode wire.py:decode payload.py:counts native.py:framed_sizes",  # rice+2bit, on the CPU
    "feedback": "error_feedback.py:rest error_feedback.py:_move_in",  # with offload
    "collectives": CARRIED["split"] + " split.py:hint all_gather.py:_padded " + ROWS,
    "reducer": "selection.py:take",
    "ops": "reference.py:chunk_topk reference.py:_without_surplus",
}
"""Which functions wait in a round of local steps, by folder; all of ``local``."""


def local_steps(rank: int, how: dict[str, Any], device: SimulatedCuda | None) -> list[Tensor]:
    """Train by local steps: weights, agreed weights and residuals at the end."""
    model = torch.nn.Module()
    for name, numel in zip(LAYOUT.names, LAYOUT.numels, strict=True):
        weights = torch.linspace(-1, 1, numel)
        model.register_parameter(name, torch.nn.Parameter(device.tensor(weights) if device else weights))
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, foreach=False)
    local = gaussiank.LocalSteps(model, optimizer, sync_every=2, **how)
    for step in range(4):
        for parameter, grad in zip(parameters.values(), gradients(rank, step).split(LAYOUT.numels), strict=True):
            parameter.grad = device.tensor(grad) if device else grad.clone()
        optimizer.step()
        before = [] if device is None else device.findings[:]
        if device is not None:
            device.findings.clear()
        rounds = bool(how.get("sync_delay")) or step % 2 == 1
        local.step()
        if device is not None:
            device.findings[:] = [*before, *(one if rounds else ("between rounds", one[1]) for one in device.findings)]
        gc.collect()
    local.finish()
    ends = [*parameters.values(), *local.agreed().values(), *(local.residual(name) for name in parameters)]
    return [getattr(one, "on_host", one).clone() for one in ends]


def compare_local(rank: int, world_size: int) -> list[list[tuple[str, str]]]:
    found = []
    gc.freeze()
    for how in LOCAL:
        with torch.no_grad():
            plain = local_steps(rank, how, None)
            device = SimulatedCuda()
            with device.installed(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the kernels of gaussiank do not run on cuda")
                simulated = local_steps(rank, how, device)
                findings = list(device.findings)
        pairs = zip(plain, simulated, strict=True)
        if any(not torch.equal(one.view(torch.uint8), two.view(torch.uint8)) for one, two in pairs):
            findings.append(("bits", "differ from those of the CPU"))
        found.append(findings)
    gc.unfreeze()
    return found


def test_local_steps_are_safe_on_cuda_and_wait_in_rounds_alone_for_what_the_table_says(two_workers: Workers) -> None:
    for each in two_workers.run(compare_local):
        for how, findings in zip(LOCAL, each, strict=True):
            for kind, text in findings:
                folder, _, place = text.rpartition(" at ")[2].partition("/")
                allowed = ({"local": ""} if "wire" in how else LOCAL_WAITS).get(folder)
                assert kind == "host wait", (how, kind, text)
                assert allowed == "" or (allowed is not None and place in allowed), (how, text)


def refusals(rank: int, world_size: int) -> list[str]:
    """What is refused on CUDA, where no rule of NCCL or of CUDA graphs could be kept."""
    parameters = dict(zip(LAYOUT.names, LAYOUT.numels, strict=True))
    messages = []
    device = SimulatedCuda()
    with device.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        plain = Settings(Constant(0.01), parse_compressor("topk"))
        mixed = replace(plain, collective=parse_policy("auto:mbit=100:candidates=dense+hierarchical"))
        for settings in (plain, mixed):
            try:
                GradientReducer(parameters, settings, device=CUDA).begin()
            except (RuntimeError, ValueError) as error:
                messages.append(str(error))
    return messages


def test_graphs_and_a_choice_among_groups_are_refused(two_workers: Workers) -> None:
    for captured, mixed in two_workers.run(refusals):
        assert captured.startswith("backward must not be captured in a CUDA graph with a compression")
        assert mixed.startswith("candidates must not have hierarchical on an accelerator, got dense+hierarchical")
