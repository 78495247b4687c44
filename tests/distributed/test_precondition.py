"""``precondition=AdamRows()`` on real workers: the rule, equal moments, the transaction, states, refusals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.distributed.conftest import Workers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank import reshard
from gaussiank.reducer.precondition import Preconditioner, decoded, encoded, output_dimensions

RULE = gaussiank.AdamRows(beta2=0.9, outputs={"image": 0})  # no convolution has it, so it would be taken for a stack
TURNED = (3, 8)


class Conv1D(nn.Module):
    """Named and laid out as transformers' own: inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(TURNED))


class Net(nn.Module):
    """A matrix, a convolution in channels_last, a vector, one row, inputs first, and a parameter that no step uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 7))
        self.image = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
        self.vector = nn.Parameter(torch.randn(6))
        self.row = nn.Parameter(torch.randn(1, 9))
        self.idle = nn.Parameter(torch.randn(2, 2))
        self.turned = Conv1D()

    def forward(self, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(draw)
        used = (self.matrix, self.image, self.vector, self.row, self.turned.weight)
        factors = [
            torch.randn(one.shape, generator=generator) * 10.0 ** (number - 2) for number, one in enumerate(used)
        ]
        return sum(((one * factor).sum() for one, factor in zip(used, factors, strict=True)), self.idle.sum() * 0)


def compressed(**more: object) -> tuple[DDP, gaussiank.Compression, torch.optim.SGD]:
    model = DDP(Net())
    options = {"density": 0.2, "precondition": RULE, **more}
    return model, gaussiank.compress(model, **options), torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)


def step(model: DDP, optimizer: torch.optim.Optimizer, number: int, rank: int, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (model(10 * number + rank) * scale).backward()
    if scale != 1:
        for one in model.parameters():
            one.grad.div_(scale)
    optimizer.step()


def by_rows(one: Tensor) -> Tensor:
    if one.shape == TURNED:
        one = one.T
    return one.reshape(one.shape[0], -1).square().mean(1) if one.dim() > 1 else one.square()


def spread(rows: Tensor, like: Tensor) -> Tensor:
    if like.shape == TURNED:
        return rows
    return rows.view(-1, *[1] * (like.dim() - 1))


def follows_the_rule(rank: int, world_size: int) -> None:
    """At density 1 without rounding, weights are those of AdamW's formula, written out."""
    model, _, optimizer = compressed(density=1.0, wire="raw+fp32")
    weights = [one.detach().clone() for one in Net().parameters()]
    moments = [torch.zeros_like(by_rows(one)) for one in weights]
    for number in range(6):
        step(model, optimizer, number, rank)
        grads = []
        for worker in range(world_size):
            other = Net()
            other(10 * number + worker).backward()
            grads.append([one.grad for one in other.parameters()])
        for place, weight in enumerate(weights):
            own = [by_rows(worker[place]) / world_size for worker in grads]
            correction = 1 - RULE.beta2 ** (number + 1)
            means = [(moments[place] * RULE.beta2 + one * (1 - RULE.beta2)) / correction for one in own]
            update = [
                worker[place] / (spread(mean, weight).sqrt() + RULE.eps)
                for worker, mean in zip(grads, means, strict=True)
            ]
            weight.sub_(0.01 * (sum(update) / world_size + 0.1 * weight))
            sent = [decoded(encoded(torch.cat([by_rows(one) / world_size for one in worker]))) for worker in grads]
            sizes = [len(by_rows(one)) for one in weights]
            arrived = sum(one.split(sizes)[place] for one in sent) / world_size
            moments[place] = moments[place] * RULE.beta2 + arrived * (1 - RULE.beta2)
    for own, wanted in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(own.detach(), wanted, rtol=3e-5, atol=3e-6)


def ends(rank: int, world_size: int, options: dict[str, object], scales: Sequence[float]) -> tuple[bytes, bytes]:
    """Weights and moments after some steps, to the bit."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scales[0])
    model, compression, optimizer = compressed(**options, scaler=scaler)
    for number, scale in enumerate(scales):
        step(model, optimizer, number, rank, scale)
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    moments = torch.cat([*compression.state_dict()["precondition"]["moment"].values()])
    assert torch.isfinite(weights).all()
    assert (moments > 0).sum() == len(moments) - 2  # all rows but those that no step uses
    return weights.numpy().tobytes(), moments.numpy().tobytes()


def keeps_the_transaction(rank: int, world_size: int) -> None:
    """A step that is zeroed, not finite on one worker, or discarded leaves moments and residuals as they were."""
    model, compression, optimizer = compressed()
    step(model, optimizer, 0, rank)
    before = copy.deepcopy(compression.state_dict())
    model(99).backward()
    optimizer.zero_grad()
    same(before, compression.state_dict())
    (model(98) * (torch.nan if rank == 0 else 1.0)).backward()
    assert not all(torch.isfinite(one.grad).all() for one in model.parameters())  # on the other worker too
    optimizer.zero_grad()
    same(before, compression.state_dict())
    model(97).backward()
    compression.discard()
    same(before, compression.state_dict())
    model(96).backward()
    with pytest.raises(RuntimeError, match="precondition must have one synchronized backward for each step"):
        model(95).backward()


def same(one: dict, other: dict) -> None:
    for kind in ("moment", "weight"):
        for name, saved in one["precondition"][kind].items():
            assert torch.equal(saved, other["precondition"][kind][name]), name
    for name, saved in one["feedback"]["residual"].items():
        assert torch.equal(saved, other["feedback"]["residual"][name]), name


def goes_on_from_a_folder(rank: int, world_size: int, folder: str) -> None:
    model, compression, optimizer = compressed(scope="layer")
    for number in range(3):
        step(model, optimizer, number, rank)
    compression.save(folder)
    saved = copy.deepcopy(model.module.state_dict())
    step(model, optimizer, 3, rank)
    again, other, second = compressed(scope="layer")
    again.module.load_state_dict(saved)
    other.load(folder)
    step(again, second, 3, rank)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="state must be of a run without precondition"):
        compressed(precondition=None)[1].load(folder)
    bare = compressed(precondition=None)
    step(bare[0], bare[2], 0, rank)
    state = bare[1].state_dict()
    with pytest.raises(ValueError, match="state must hold the second moments of precondition"):
        other.load_state_dict(state)
    moved = reshard.reshard([compression.state_dict()], rank=rank, world_size=2 * world_size)
    for name, moment in compression.state_dict()["precondition"]["moment"].items():
        assert torch.equal(moved["precondition"]["moment"][name], moment / 2)  # of a mean over twice as many
    wrong = copy.deepcopy(compression.state_dict())
    wrong["precondition"]["moment"]["matrix"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"second moments of matrix must have 5 rows, got shape \(7,\)"):
        other.load_state_dict(wrong)


def refuses_what_divides_twice(rank: int, world_size: int) -> None:
    for made, message in (
        (
            lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
            "momentum of the optimizer must be 0 beside precondition",
        ),
        (lambda ps: torch.optim.AdamW(ps, betas=(0.0, 0.999)), "optimizer must be one without second moments beside"),
        (torch.optim.Adafactor, "optimizer must be one without second moments beside"),
        (torch.optim.RMSprop, "optimizer must be one without second moments beside"),
    ):
        model, _, _ = compressed()
        optimizer = made(model.parameters())
        model(1).backward()
        with pytest.raises(ValueError, match=message):
            optimizer.step()
    for options, message in (
        ({"precondition": "AdamRows"}, "precondition must be an AdamRows, got 'AdamRows'"),
        ({"precondition": gaussiank.AdamRows}, "precondition must be an AdamRows, got <class"),
        *(
            ({"precondition": gaussiank.AdamRows(outputs=outputs)}, "outputs of AdamRows must name some dimensions of")
            for outputs in ({"matrix": 2}, {"matrix": (0, 1)}, {"vector": 0}, {"unknown": 0})
        ),
        ({"momentum": gaussiank.MomentumCorrection()}, "precondition must be None beside momentum"),
        ({"compressor": "randomk:feedback=false"}, "precondition must be None beside a compressor without feedback"),
    ):
        with pytest.raises(ValueError, match=message):
            compressed(**options)


def test_weights_follow_the_written_rule(two_workers: Workers) -> None:
    two_workers.run(follows_the_rule)


def test_moments_are_the_same_on_all_workers_whatever_carries_the_gradient(two_workers: Workers) -> None:
    for options in (
        *({"collective": name} for name in ("split", "leader", "tree", "auto:mbit=1:latency_us=10")),
        {"compressor": "dense"},
        {"scope": "model"},
        {"scope": "layer", "clip_norm": 1.0},
        {"compressor": "chunktopk:chunk=8", "wire": "chunks+2bit"},
    ):
        one, two = two_workers.run(ends, options, [1.0] * 5)
        assert one == two, options
    plain, scaled = (two_workers.run(ends, {"wire": "raw+fp32"}, scales)[0] for scales in ([1.0] * 5, [4.0] * 5))
    assert plain == scaled  # a scale of the loss cancels out


def test_moments_follow_the_transaction_of_the_residuals(two_workers: Workers) -> None:
    two_workers.run(keeps_the_transaction)


def test_a_run_goes_on_from_a_folder_and_other_states_are_refused(two_workers: Workers, tmp_path: Path) -> None:
    two_workers.run(goes_on_from_a_folder, str(tmp_path))


def test_what_would_divide_twice_is_refused(two_workers: Workers) -> None:
    two_workers.run(refuses_what_divides_twice)


def test_outputs_are_found_where_they_are_not_the_first_dimension() -> None:
    model = nn.Module()
    model.up, model.down, model.linear = nn.ConvTranspose1d(3, 8, 2), nn.Conv2d(3, 8, 2), nn.Linear(2, 3)
    model.experts, model.turned = nn.Parameter(torch.zeros(2, 3, 4)), Conv1D()
    assert output_dimensions(model) == {"experts": (0, 1), "up.weight": (1,), "turned.weight": (1,)}
    shapes = {name: one.shape for name, one in model.named_parameters()}
    rows = Preconditioner(gaussiank.AdamRows(outputs=output_dimensions(model)), shapes, 1)
    assert [rows.rows(name) for name in ("experts", "up.weight", "turned.weight", "down.weight")] == [6, 8, 8, 8]


def test_mean_squares_come_back_within_an_eighth_of_an_octave() -> None:
    generator = torch.Generator().manual_seed(0)
    for exponent in (-100, -30, 0, 30, 100):
        squares = torch.rand(1000, generator=generator) * 2.0**exponent
        back = decoded(encoded(squares))
        assert ((back / squares).log2().abs() <= 1 / 8 + 1e-5).all()
    assert decoded(encoded(torch.tensor([0.0, 0.0]))).tolist() == [0.0, 0.0]
    assert decoded(encoded(torch.tensor([torch.nan, 1.0]))).tolist() == [torch.inf, 1.0]
