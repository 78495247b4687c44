"""The study of sparse AdamW and local steps: its rules are the library's, its rows outlive a kill."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.distributed.conftest import Workers as Processes
from tests.distributed.conftest import two_workers, worker_groups
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

import gaussiank
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather
from gaussiank.sparse import SparseGradient
from gaussiank_lab.cli import app
from gaussiank_lab.models.text import Transformer
from gaussiank_lab.reproduce.adamw import study
from gaussiank_lab.reproduce.adamw.lines import dense, diloco, grid, local, rows, settings_of, sparse
from gaussiank_lab.reproduce.adamw.page import setting_of, summarise, write_page
from gaussiank_lab.reproduce.adamw.rules import CLIP_NORM, RUNS, WEIGHT_DECAY, RulePreconditioner, schedule_of
from gaussiank_lab.reproduce.adamw.setting import SIZES, StudySetting
from gaussiank_lab.reproduce.adamw.workers import VOCABULARY, Workers, learning_rate

__all__ = ["two_workers", "worker_groups"]  # fixtures

TINY: dict[str, Any] = {"model": "tiny", "workers": 2, "steps": 6}


class PlainWorkers(Workers):
    """Compute each worker's gradient with the lab's own module, one worker after the other."""

    def gradients(self) -> tuple[Tensor, Tensor]:
        losses = []
        for rank, generator in enumerate(self._generators):
            model = module(self, self.weights[rank if len(self.weights) > 1 else 0])
            loss = loss_of(model, self._windows(generator))
            loss.backward()
            self._grads[rank] = flat(self, model, grad=True)
            losses.append(loss.detach())
        return self._grads, torch.stack(losses)


def module(workers: Workers, weights: Tensor) -> Transformer:
    size = workers.size
    model = Transformer(VOCABULARY, size.width, size.layers, size.heads)
    with torch.no_grad():
        for name, view in workers.views(weights[None]).items():
            model.get_parameter(name).copy_(view[0])
    return model


def loss_of(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def flat(workers: Workers, model: torch.nn.Module, *, grad: bool = False) -> Tensor:
    parameters = [model.get_parameter(name) for name in workers.layout.names]
    return torch.cat([(one.grad if grad and one.grad is not None else one.detach()).flatten() for one in parameters])


def test_all_workers_forward_at_once_is_the_labs_transformer() -> None:
    batched, plain = (kind(SIZES["tiny"], 3, 2, 0, own=True) for kind in (Workers, PlainWorkers))
    batched.weights.add_(torch.randn(batched.weights.shape), alpha=0.05)
    plain.weights.copy_(batched.weights)
    for got, wanted in zip(batched.gradients(), plain.gradients(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    model = module(plain, plain.weights[1])
    windows = torch.stack([batched._test[16 * number :][:17].long() for number in range(40)])
    share = 40.5 * 16 / len(batched._test)
    assert batched.evaluate(batched.weights[1], share) == pytest.approx(
        float(loss_of(model, windows).detach()), rel=1e-4
    )


CHECKED = [
    sparse(1 / 16, **TINY),
    sparse(1 / 16, **TINY, beta1=0.9, clip="none", scope="layer", wire="rice+bf16-rice"),
    sparse(1 / 16, **TINY, compressor="chunktopk:chunk=256", correction=0.9, masking=True, wire="rice+4bit"),
    sparse(1 / 16, **TINY, scope="model", warm=True, wire="rice+8bit"),
    local(3, 1 / 8, **TINY, clip="none", compressor="topk", wire="rice+bf16-rice"),
    # Adam's first step is as large everywhere: no turn after one step, where topk has ties to break
    *(
        local(
            4,
            1 / 8,
            **TINY,
            clip="none",
            compressor="topk",
            wire="rice+bf16-rice",
            fragments=2,
            sync_delay=1,
            mixing=mixing,
        )
        for mixing in (None, 0.5)
    ),
]


def train_really(rank: int, world_size: int, keys: list[StudySetting]) -> list[Tensor]:
    """Train with DDP and ``compress`` as a user would, and return the weights of each setting."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=gaussiank.AdamWarning)
        return [_train(rank, setting) for setting in keys]


def _train(rank: int, setting: StudySetting) -> Tensor:
    dealt = Workers(SIZES[setting.model], setting.workers, setting.batch, setting.seed, own=False)
    model = module(dealt, dealt.weights[0]) if setting.method == "local" else _compressed(dealt, setting)
    betas = (setting.beta1, setting.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, weight_decay=WEIGHT_DECAY)
    agree = _local_steps(model, optimizer, setting) if setting.method == "local" else None
    for step in range(setting.steps - 1):
        optimizer.param_groups[0]["lr"] = learning_rate(setting.lr, step, setting.steps)
        optimizer.zero_grad()
        loss_of(model, dealt._windows(dealt._generators[rank])).backward()
        optimizer.step()
        if agree is not None:
            agree.step()
    if agree is not None:
        agreed = agree.agreed()
        return torch.cat([agreed[name].flatten() for name in dealt.layout.names])
    return flat(dealt, getattr(model, "module", model))


def _local_steps(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, setting: StudySetting
) -> gaussiank.LocalSteps:
    return gaussiank.LocalSteps(
        model, optimizer, sync_every=setting.sync_every, density=setting.density, compressor=setting.compressor,
        wire=setting.wire, collective=AllGather(spread=100.0), decay=setting.decay,
        fragments=setting.fragments, sync_delay=setting.sync_delay, mixing=setting.mixing,
    )  # fmt: skip


def _compressed(dealt: Workers, setting: StudySetting) -> DistributedDataParallel:
    model = DistributedDataParallel(module(dealt, dealt.weights[0]))
    model(
        torch.zeros(1, 4, dtype=torch.int64)
    ).sum().backward()  # from its second step on DDP's buckets stay as they are
    moves = setting.correction > 0
    gaussiank.compress(
        model,
        schedule_of(setting),
        compressor=setting.compressor,
        scope=setting.scope,
        wire=setting.wire,
        clip_norm=CLIP_NORM if setting.clip == "local" else None,
        momentum=gaussiank.MomentumCorrection(setting.correction, masking=setting.masking) if moves else None,
        collective=AllGather(spread=100.0),  # so much room that no row is cut
    )
    return model


def test_simulated_workers_are_real_ones_bit_for_bit(two_workers: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaussiank_lab.reproduce.adamw.rules.Workers", PlainWorkers)
    real = two_workers.run(train_really, CHECKED)
    for number, setting in enumerate(CHECKED):
        run = RUNS[setting.method](setting)
        for step in range(setting.steps - 1):  # in the last one of a study all rounds end
            run.step(step)
        assert all(torch.equal(weights[number], run.weights) for weights in real), setting.key


def test_every_rule_trains_and_counts_what_it_sends() -> None:
    """Bits are those of the payloads: counted here from what each rule is known to send."""
    tiny = {**TINY, "steps": 8}
    entries = 28_864
    wanted: list[tuple[StudySetting, float, int]] = [
        (dense(**tiny), 32, 8),
        (StudySetting("bf16", 0.01, **tiny), 16, 8),
        (
            StudySetting("powersgd", 0.01, rank=1, **tiny),
            32 * (2 * (256 + 32) + 128 + 2 * 160 + 64 + 6 * 32) / entries,
            8,
        ),
        (diloco(4, **tiny), 32 / 4, 2),
        (diloco(4, wire="dense+8bit", **tiny), 8.25 / 4, 2),
    ]
    for setting, bits, messages in wanted:
        row = study.train(setting)
        assert row["nats"] < 5.5, setting.key  # 5.55 at the start
        assert row["bits"] == pytest.approx(bits, rel=0.02), setting.key
        assert row["messages"] == messages
    whole = SparseGradient(torch.arange(entries, dtype=torch.int32), torch.ones(entries), entries)
    message_bytes = Wire("raw", "8bit").pack(whole).size - 4 * entries  # no indices
    assert row["bits"] == pytest.approx(2 * 8 * message_bytes / (8 * entries), abs=1e-6)  # in 2 messages of 8 steps
    for setting in (
        sparse(1 / 16, **tiny, frozen=0.25),
        rows(1 / 16, **tiny, lookahead=0.5),
        rows(1 / 16, **tiny, precondition="column", correction=0.5),
        local(4, 1 / 4, **tiny),
        StudySetting("demo", 0.003, density=1 / 16, decay=0.999, **tiny),
    ):
        row = study.train(setting)
        dense_part = 32 * setting.frozen
        per_entry = (row["bits"] - dense_part) / setting.density * setting.sync_every / (1 - setting.frozen)
        assert row["nats"] < 5.5, setting.key
        assert 3 < per_entry < 9, setting.key  # 2 bits for the value, 2 to 6 for the place


def test_what_one_worker_preconditions_is_its_gradient_over_its_own_size() -> None:
    """With one worker the lagged state is the state itself; at the first step every square cancels out."""
    workers = Workers(SIZES["tiny"], 1, 2, 0, own=False)
    grads = torch.randn(1, workers.layout.numel)
    grads += 0.1 * grads.sign()
    for by, dims in (("row", (2,)), ("column", (1,)), ("block", (1, 2)), ("entry", ())):
        divided = grads.clone()
        RulePreconditioner(by, workers, 0.9, lagged=True).divide(divided)
        for got, grad in zip(workers.views(divided).values(), workers.views(grads).values(), strict=True):
            matrix = grad.dim() == 3 and dims
            root = grad.square().mean(dims, keepdim=True).sqrt() if matrix else grad.abs()
            torch.testing.assert_close(got, grad / root, rtol=1e-4, atol=1e-6)


def test_dense_local_steps_of_one_worker_are_plain_training() -> None:
    alone = {**TINY, "workers": 1}
    plain, local_run = (RUNS[one.method](one) for one in (dense(**alone, clip="none"), local(
        3, 1.0, **alone, clip="none", compressor="topk", wire="raw+fp32", decay=1.0)))  # fmt: skip
    for step in range(6):
        plain.step(step)
        local_run.step(step)
    torch.testing.assert_close(local_run.weights, plain.weights, rtol=1e-5, atol=1e-6)


def test_a_study_does_what_has_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    settings = [dense(**TINY), sparse(1 / 16, **TINY), sparse(1 / 16, **TINY, seed=1)]
    study.append_row(path, {"key": settings[0].key, "nats": 1.0})
    with path.open("a") as file:
        file.write('{"key": "cut')  # by a kill
    assert study.run_study(settings, path, Console(quiet=True), only="seed=1") == 1
    assert list(study.read_rows(path)) == [settings[0].key, settings[2].key]
    assert study.run_study(settings, path, Console(quiet=True), budget_minutes=0) == 0
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ValueError, match="must hold a row on each line, got another thing on 1"):
        study.read_rows(path)


def row(setting: StudySetting, nats: float | None, **changes: Any) -> study.Row:
    told = {"numel": 1000, "bits": 0.1, "sum_bits": 0.0, "messages": 6, "date": "2026-11-30T00:00:00", "commit": "abc"}
    return {"key": setting.key, **dataclasses.asdict(setting), **told, "machine": "m", "nats": nats, **changes}


def test_lines_stand_at_their_best_rate(tmp_path: Path) -> None:
    line = sparse(1 / 16, **TINY)
    for one in (
        *(row(setting, 1.6 - setting.lr, bits=32) for setting in grid(dense(**TINY), (0.1, 0.2), (0, 1))),
        *(row(setting, 1.5 + setting.seed / 10) for setting in grid(line, (0.1,), (0, 1))),
        *(row(setting, 1.0) for setting in grid(line, (0.2,), (0,))),  # one seed does not beat two
        *(row(setting, None) for setting in grid(line, (0.4,), (0,))),
        *(row(setting, 2.0) for setting in grid(local(10, 1 / 4, **TINY), (0.1,))),
        row(rows(1 / 4, **TINY), 1.7, sum_bits=0.5),
        row(diloco(10, **TINY), 2.1, bits=3.2),
    ):
        study.append_row(tmp_path / "rows.jsonl", one)
    (lines,) = summarise(study.read_rows(tmp_path / "rows.jsonl").values()).values()
    found = {line.row["method"] + line.row["precondition"]: line for line in lines}
    assert found["sparse"].mean == pytest.approx(1.55)
    assert found["sparse"].above == pytest.approx(0.15)
    assert found["sparse"].rates == (0.1, 0.2, 0.4)
    text = write_page(tmp_path / "rows.jsonl").read_text()
    assert "| `method=sparse beta1=0 density=0.0625 clip=local` | 0.1 | – | 6 | 1.550 | +0.150 | 2 | 0.1 |" in text
    assert (tmp_path / "tiny-2-4-6-bits.svg").read_text().startswith("<svg")


def test_keys_name_what_differs_and_lines_differ() -> None:
    settings = settings_of(["sparse-adamw", "local-steps"])
    assert len({setting.key for setting in settings}) == len(settings) > 100
    assert sparse(1 / 64, seed=2).key == "method=sparse lr=0.006 seed=2 beta1=0 density=0.015625 clip=local"
    assert setting_of(row(settings[-1], 1.0)) == settings[-1]
    assert {setting.method for setting in settings_of(["local-steps"])} == {"local", "dense"}


def test_command_line(tmp_path: Path) -> None:
    arguments = ["reproduce", "sparse-adamw", "--no-train", "--out", str(tmp_path)]
    study.append_row(tmp_path / "rows.jsonl", row(dense(**TINY), 1.0))
    assert "Page: " in CliRunner().invoke(app, arguments).output
    mixed = CliRunner().invoke(app, ["reproduce", "sparse-adamw", "kept"])
    assert "names must be recipes or studies, got sparse-adamw and kept" in str(mixed.exception)
