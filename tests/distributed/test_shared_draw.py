"""Workers that draw the same indices send values alone: nothing is lost, and the bytes are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed.test_compress_collectives import refusing
from tests.distributed.test_hook import Given, Totals, assert_nothing_lost, feed, resumed, run
from tests.distributed.test_hook_overflow import overflowing
from tests.distributed.test_wires import ON_GRID, one_worker_law
from tests.each import each
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.autotune import POLICIES, parse_policy
from gaussiank.codec import VALUE_CODES, Wire

SHARED = {"compressor": "randomk:shared=true"}
ABLE = ["allgather", "leader"]
HOWS: list[dict[str, Any]] = [
    *({"wire": f"rice+{values}"} for values in VALUE_CODES if values != "fp64"),
    {"wire": "seed+8bit+stochastic"},
    {"scope": "layer"},
    {"scope": "model"},
]


def train_all(rank: int, world_size: int, spec: str) -> list[Totals]:
    """Train in small buckets, with other settings each time."""
    small = {"bucket_cap_mb": 0.0005}
    return [run(rank, world_size, 3, small, {"density": 0.05, "collective": spec, **SHARED, **how}, torch.float32)
            for how in HOWS]  # fmt: skip


@each("spec", ABLE)
def test_nothing_is_lost(contract_workers: Any, spec: str) -> None:
    for results in zip(*contract_workers.run(train_all, spec), strict=True):
        assert_nothing_lost(list(results))


def counted(rank: int, world_size: int, spec: str, wire: str) -> tuple[int, int]:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.1, collective=spec, wire=wire, **SHARED)
    model(feed(rank, 0)).backward()
    return compression.metrics.sent_bytes, compression.metrics.k


@each(("values", "value_bytes"), [("fp32", 4.0), ("bf16", 2.0), ("8bit", 65 / 64)])
@each("spec", ABLE)
def test_only_values_are_sent(contract_workers: Any, spec: str, values: str, value_bytes: float) -> None:
    world_size = contract_workers.world_size
    results = contract_workers.run(counted, spec, f"rice+{values}")
    k = results[0][1]
    sent = sum(sent_bytes for sent_bytes, _ in results) / world_size
    assert k == 108
    if spec == "allgather":
        assert sent == pytest.approx((world_size - 1) * (24 + k * value_bytes), abs=world_size)
    else:  # each share has room for whole values, and a byte behind it
        most = 2 * (world_size - 1) * (1 + (k / world_size + 1) * value_bytes + 1)
        assert 2 * (world_size - 1) / world_size * k * value_bytes <= sent <= most
    expected = parse_policy(spec).traffic(1076, k, world_size, Wire("seed", values)).sent_bytes
    assert sent == pytest.approx(expected, abs=1)


def test_the_law_holds_to_the_bit_for_one_worker(worker_groups: Any) -> None:
    from tests.distributed.conftest import _started

    group = worker_groups.get(1) or _started(worker_groups, 1)
    assert group.run(one_worker_law, SHARED) == [[True] * len(ON_GRID)]


@each("bad", [float("nan"), float("inf")])
@each("spec", ABLE)
def test_nonfinite_reaches_all_and_enters_no_residual(three_workers: Any, spec: str, bad: float) -> None:
    how = {"collective": spec, "density": 0.05, **SHARED}
    assert three_workers.run(overflowing, bad, how) == [(True, True, True)] * 3


@each("spec", ABLE)
def test_raise_names_the_parameter_on_every_worker(three_workers: Any, spec: str) -> None:
    for message in three_workers.run(refusing, spec, SHARED["compressor"]):
        assert "gradient of third must be finite, got infinity or NaN on some worker in step 0." in message


@each("spec", ABLE)
def test_resume_goes_on_to_the_bit(three_workers: Any, spec: str) -> None:
    assert three_workers.run(resumed, {"density": 0.05, "collective": spec, **SHARED}) == [True] * 3


def without_feedback(rank: int, world_size: int) -> list[float]:
    model = DDP(Given())
    gaussiank.compress(model, density=0.05, compressor="randomk:shared=true:feedback=false", wire="seed+fp32")
    fed = feed(rank, 0)
    model(fed).backward()
    mean = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]  # given
    given = torch.cat([fed[name].flatten() for name, _ in model.module.named_parameters()])
    chosen = mean != 0
    return [float(chosen.sum()), *given[chosen].tolist(), *mean[chosen].tolist()]


def test_without_feedback_the_mean_is_that_of_the_drawn_entries(two_workers: Any) -> None:
    one, other = (torch.tensor(result) for result in two_workers.run(without_feedback))
    kept = int(one[0])
    assert 40 < kept <= 54  # a mean may be zero
    torch.testing.assert_close((one[1 : 1 + kept] + other[1 : 1 + kept]) / 2, one[1 + kept :])
    assert torch.equal(one[1 + kept :], other[1 + kept :])


def refused(rank: int, world_size: int) -> list[str]:
    attempts: list[dict[str, Any]] = [
        *({**SHARED, "collective": spec} for spec in POLICIES if spec not in ABLE),
        {"compressor": "randomk"},
        {**SHARED, "max_bytes": 200},
    ]
    messages = []
    for how in attempts:
        try:
            gaussiank.compress(DDP(Given()), wire="seed+bf16", **how)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_refused_in_one_sentence_elsewhere(two_workers: Any) -> None:
    needing = len(POLICIES) - len(ABLE)
    for messages in two_workers.run(refused):
        assert len(messages) == needing + 2
        for message in messages[:needing]:
            assert message.startswith("wire must send its indices with ")
            assert message.endswith("Take rice in place of seed, or the collective allgather or leader.")
        for message in messages[needing:]:
            assert message.startswith("wire must send the indices of ")
            assert "or the compressor randomk:shared=true without max_bytes." in message


def disagreeing(rank: int, world_size: int) -> str:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.05, **SHARED)
    compression.load_state_dict({**compression.state_dict(), "exchanges": rank})
    try:
        model(feed(rank, 0)).backward()
    except RuntimeError as error:
        return str(error)
    return "accepted"


def test_workers_at_other_steps_are_refused(two_workers: Any) -> None:
    for message in two_workers.run(disagreeing):
        assert "got another fingerprint. Workers disagree on the draw." in message
