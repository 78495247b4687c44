"""The reducer on a simulated CUDA device with NCCL's rules: the bits of a CPU, no race, no early free, no host wait."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator

import pytest
import torch
from tests.covering import covering
from tests.distributed.conftest import Workers
from tests.simulated_cuda import SimulatedCuda
from torch import Tensor

from gaussiank.codec import Wire
from gaussiank.collectives import parse_collective
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import AdamRows, GradientReducer, Settings
from gaussiank.schedule import Constant

LAYOUT = Layout(("a", "b", "c"), (2000, 1, 1999))
COLLECTIVES = ("allgather", "split", "tree", "leader", "hierarchical:ranks_per_node=2", "dense")
WIRES = ("chunks+bf16", "raw+fp32", "chunks+4bit")
SCOPES = ("bucket", "layer", "model")
COMPRESSORS = (
    *("topk", "gaussiank", "dense:values=bf16"),
    *("dense", "randomk:shared=true", "randomk", "trimmedtopk", "dgc", "mstopk", "sidco", "chunktopk"),
)
STEPS = 3
Case = tuple[str, str, str, str, bool]

CARRIED = ("split", "tree", "leader", "hierarchical")
"""Their thread may wait for the device: what has arrived decides what is sent next. The training loop does not."""

WAITS = {
    "topk": "",
    "trimmedtopk": "",
    "dense": "",
    # infinities and NaN go first: whether there are any decides what is selected
    "randomk": "selection.py:take",
    # compares a draw that is not sent with what it stands for
    "randomk:shared=true": "selection.py:take packing.py:at_drawn seed.py:encode",
    # how many entries are above a threshold decides the next shape, or the next threshold
    "dgc": "dgc.py:take reference.py:accumulate_threshold",
    "gaussiank": "selection.py:take gaussiank.py:_normal_fit gaussiank.py:take gaussiank.py:_bracketed"
    " reference.py:count_above reference.py:accumulate_threshold compressor.py:threshold compressor.py:put_back",
    "mstopk": "selection.py:take mstopk.py:_bounds mstopk.py:_mean mstopk.py:select",
    "chunktopk": "selection.py:take chunktopk.py:select",
    # no bound on the count: payloads say how long they are
    "sidco": "selection.py:take sidco.py:_exponential sidco.py:select all_gather.py:_largest all_gather.py:_padded"
    " wire.py:decode payload.py:counts native.py:framed_sizes",
}
"""Which functions wait for the device in the hook, by compressor."""


def gradients(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(-99, 100, (3, LAYOUT.numel), generator=generator).float().prod(0) * 2.0**-20


def train(rank: int, case: Case, device: SimulatedCuda | None) -> list[Tensor]:
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
    reducer = GradientReducer(dict(zip(LAYOUT.names, LAYOUT.numels, strict=True)), settings)
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


def compare(rank: int, world_size: int, cases: list[Case]) -> dict[Case, list[tuple[str, str]]]:
    """What was found in each case, and whether bits differ."""
    found = {}
    gc.freeze()  # so that a collection looks at little
    for case in cases:
        with torch.no_grad():
            plain = train(rank, case, None)
            device = SimulatedCuda()
            with device.installed():
                simulated = train(rank, case, device)
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
    allowed = {"host wait": WAITS[case[1].removesuffix(":values=bf16")].split()}
    for kind, text in findings:
        carried = kind == "thread wait" and case[0].partition(":")[0] in CARRIED
        if not carried and not any(text.endswith(place) for place in allowed.get(kind, ())):
            yield kind, text


def let_go(rank: int, world_size: int) -> list[tuple[str, str]]:
    """What is found when nobody holds what exchanges still use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientReducer, "_hold", lambda *_, **__: None)
        found = compare(rank, world_size, [("allgather", "topk", "chunks+bf16", "model", False)])
    return [finding for findings in found.values() for finding in findings]


def test_the_simulated_device_sees_a_tensor_that_is_let_go_too_early(two_workers: Workers) -> None:
    for findings in two_workers.run(let_go):
        assert {kind for kind, _ in findings} == {"freed in use"}
        assert len(findings) >= 3  # the indices, the rounding errors, and the joined gradient
