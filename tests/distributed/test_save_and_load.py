"""``compression.save`` and ``load``: every worker's own state, on all workers or on none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank import checkpoint, durable, reshard


def compressed(outputs: int = 60) -> tuple[nn.Module, gaussiank.Compression]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(50, outputs))
    momentum = gaussiank.MomentumCorrection(0.9)
    return model, gaussiank.compress(model, 0.01, compressor="gaussiank", momentum=momentum, collective="split")


def stepped(rank: int, steps: int = 3) -> tuple[nn.Module, gaussiank.Compression]:
    model, compression = compressed()
    for step in range(steps):
        inputs = torch.randn(4, 50, generator=torch.Generator().manual_seed(100 * rank + step))
        model(inputs).square().sum().backward()
    return model, compression


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def refusal(load: Any, compression: gaussiank.Compression) -> str:
    """Return what loading raises, and see that nothing has changed."""
    before = compression.state_dict()
    try:
        load()
    except (ValueError, OSError) as error:
        assert same(compression.state_dict(), before)
        return f"{type(error).__name__}: {error}"
    return "loaded"


def saved_and_loaded(rank: int, world_size: int, folder: str) -> tuple[bool, list[str], dict[str, Any]]:
    _, compression = stepped(rank, steps=2)
    compression.save(folder)
    _, compression = stepped(rank)
    Path(folder, f"model-{rank}.pt").write_text("another's")
    compression.save(folder)
    state = compression.state_dict()
    dist.barrier()
    _, other = compressed()
    other.load(folder)
    return same(other.state_dict(), state), sorted(path.name for path in Path(folder).iterdir()), state


def loaded(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    _, compression = compressed()
    compression.load(folder)
    return compression.state_dict()


def test_every_worker_gets_its_own_back_and_more_workers_their_share(
    tmp_path: Path, two_workers: Any, three_workers: Any
) -> None:
    answers = two_workers.run(saved_and_loaded, str(tmp_path))
    assert [equal for equal, _, _ in answers] == [True, True]
    names = answers[0][1]
    assert [name[:12] for name in names] == ["compression-"] * 2 + ["compression.", "model-0.pt", "model-1.pt"]
    states = [state for _, _, state in answers]
    assert not torch.equal(*(state["feedback"]["residual"]["module.weight"[7:]] for state in states))
    for rank, state in enumerate(three_workers.run(loaded, str(tmp_path))):
        wanted = [states[source] for source in reshard.sources(rank, 3, 2)]
        expected = reshard.reshard(wanted, rank, 3)
        assert same(state["feedback"], expected["feedback"])
        assert state["routes"] == {}


def refusals(rank: int, world_size: int, folder: str) -> list[str]:
    _, compression = stepped(rank)
    compression.save(folder)
    answers = [refusal(lambda: compression.load(f"{folder}/none"), compression)]
    manifest = Path(folder, "compression.json")
    text = manifest.read_bytes()
    part = Path(folder, json.loads(text)["files"][1]["name"])
    data = part.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    wrong = bytearray(text)
    wrong[text.index(b'"step": 3') + 8] ^= 1
    for path, kept, changed in (
        (part, data, bytes(flipped)),
        (part, data, data[:-1]),
        (part, data, None),
        (manifest, text, bytes(wrong)),
        (manifest, text, b"{}"),
    ):
        dist.barrier()
        if rank == 0:
            path.write_bytes(changed) if changed is not None else path.unlink()
        dist.barrier()
        answers.append(refusal(lambda: compression.load(folder), compression))
        dist.barrier()
        if rank == 0:
            path.write_bytes(kept)
    dist.barrier()
    _, other = compressed(outputs=61)
    answers.append(refusal(lambda: other.load(folder), other))
    return answers


def test_what_one_worker_cannot_load_is_loaded_by_none(tmp_path: Path, two_workers: Any) -> None:
    first, second = two_workers.run(refusals, str(tmp_path))
    assert first == second
    sentences = [
        "FileNotFoundError: folder must be one that compression.save wrote, got ",
        "ValueError: .*-00001.pt must have [0-9]+ bytes with SHA-256 .*, got others. It is damaged",
        "ValueError: .*-00001.pt must have [0-9]+ bytes with SHA-256 .*, got others. It is damaged",
        "ValueError: .*-00001.pt must be there, got no such file. It is damaged",
        "ValueError: .*compression.json must have the checksum that it names, got another one",
        "ValueError: .*compression.json must have format 1, got None",
        "ValueError: state must be of this model, got 60 entries for parameter 'bias' where the model has 61",
    ]
    for said, sentence in zip(first, sentences, strict=True):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            raise ValueError(said)


def wrong_states(rank: int, world_size: int) -> list[str]:
    _, compression = stepped(rank)
    state = compression.state_dict()
    states: list[Any] = [state]
    dist.broadcast_object_list(states, src=0)  # as a framework that saves rank 0's for all
    _, shorter = stepped(rank, steps=2)
    own = shorter.state_dict()
    broken = {key: value for key, value in state.items() if key != "hints"}
    return [
        refusal(lambda: compression.load_state_dict(states[0]), compression),
        refusal(lambda: compression.load_state_dict(own if rank else state), compression),
        refusal(lambda: compression.load_state_dict(broken if rank else state), compression),
        refusal(lambda: compression.load_state_dict({**state, "format": 2} if rank == 0 else state), compression),
    ]


def test_a_state_of_another_rank_is_refused_on_all(two_workers: Any) -> None:
    first, second = two_workers.run(wrong_states)
    assert first == second
    starts = [
        "ValueError: rank of the state must be 1, got 0. Load on each worker what that worker saved: compression.save",
        "ValueError: step must be the same on every worker, got 3 on rank 0 and 2 on rank 1.",
        "ValueError: state must be what state_dict returned, got one that lacks something.",
        "ValueError: state must have format 1, got 2.",
    ]
    assert [said[: len(start)] for said, start in zip(first, starts, strict=True)] == starts
    assert [said.rpartition("(")[2] for said in first] == ["rank 1)", first[1].rpartition("(")[2], "rank 1)", "rank 0)"]


def out_of_room(state: Any, file: Any) -> None:
    file.write(bytes(5000))
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk(rank: int, world_size: int, folder: str) -> tuple[str, bool, list[str]]:
    _, compression = stepped(rank, steps=2)
    compression.save(folder)
    kept = compression.state_dict()
    _, compression = stepped(rank)
    write = torch.save
    if rank == 1:
        torch.save = out_of_room
    try:
        said = refusal(lambda: compression.save(folder), compression)
    finally:
        torch.save = write
    dist.barrier()
    names = sorted(os.listdir(folder))  # noqa: PTH208  names alone
    compression.load(folder)
    return said, same(compression.state_dict(), kept), names


def test_a_full_disk_on_one_worker_leaves_the_last_save(tmp_path: Path, two_workers: Any) -> None:
    first, second = two_workers.run(full_disk, str(tmp_path))
    assert first == second
    said, whole, names = first
    assert said.startswith("OSError: [Errno 28] No space left on device: ")
    assert said.endswith("(rank 1)")
    assert str(tmp_path) in said
    assert whole
    assert len(names) == 3


def interrupted(rank: int, world_size: int, folder: str, how: str) -> tuple[str, bool]:
    """Rank 1 gets Ctrl-C once rank 0 has written the list of files, or the folder cannot be synced then."""
    _, compression = stepped(rank, steps=2)
    compression.save(folder)
    _, compression = stepped(rank)
    state, together, sync, calls = compression.state_dict(), checkpoint.together, durable.sync_folder, 0

    def interrupted_together(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        outcome = together(*given, **named)
        if rank == 1 and calls == 3:
            raise KeyboardInterrupt
        return outcome

    def refused(path: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", str(path))

    if how == "Ctrl-C":
        checkpoint.together = interrupted_together
    else:
        durable.sync_folder = refused
    said = ""
    try:
        compression.save(folder)
    except (KeyboardInterrupt, OSError) as error:
        said = type(error).__name__
    finally:
        checkpoint.together, durable.sync_folder = together, sync
    dist.barrier()
    _, other = compressed()
    other.load(folder)
    return said, same(other.state_dict(), state)


def test_a_save_that_ends_badly_when_the_list_is_written_is_whole(tmp_path: Path, two_workers: Any) -> None:
    assert two_workers.run(interrupted, str(tmp_path / "1"), "Ctrl-C") == [("", True), ("KeyboardInterrupt", True)]
    assert two_workers.run(interrupted, str(tmp_path / "2"), "sync") == [("OSError", True)] * 2


OTHER: tuple[dict[str, Any], ...] = (
    {"density": 0.1},
    {"compressor": "gaussiank"},
    {"collective": "split"},
    {"collective": "tree", "wire": "raw+fp32"},
    {"wire": "raw+fp32"},
    {"scope": "layer"},
    {"scope": "model"},
    {"clip_norm": 1.0},
    {"max_bytes": 600},
    {"on_nonfinite": "raise"},
    {"timeout_s": 30.0},
)
REFUSED = ({"momentum": gaussiank.MomentumCorrection(0.9)}, {"precondition": gaussiank.AdamRows()})


def loaded_by_others(rank: int, world_size: int) -> tuple[list[bool], list[str]]:
    """Save with the defaults; load with other settings, and take a step."""

    def one(**settings: Any) -> tuple[nn.Module, gaussiank.Compression]:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(50, 60))
        return model, gaussiank.compress(model, **{"density": 0.01, **settings})

    def step(model: nn.Module) -> None:
        model(torch.randn(4, 50, generator=torch.Generator().manual_seed(rank))).square().sum().backward()

    model, compression = one()
    for _ in range(3):
        step(model)
    state, same_residuals, messages = compression.state_dict(), [], []
    for settings in OTHER:
        model, compression = one(**settings)
        compression.load_state_dict(state)
        found = compression.state_dict()
        same_residuals.append(same(found["feedback"], state["feedback"]) and found["step"] == 3)
        step(model)
        assert compression.step == 4
    for settings in REFUSED:
        _, compression = one(**settings)
        messages.append(refusal(lambda compression=compression: compression.load_state_dict(state), compression))
    return same_residuals, messages


def test_what_may_change_between_save_and_load_is_what_the_docs_say(two_workers: Any) -> None:
    for same_residuals, (momentum, precondition) in two_workers.run(loaded_by_others):
        assert same_residuals == [True] * len(OTHER)
        assert "ValueError: state must fit the momentum correction, got a state that has no velocity" in momentum
        assert (
            precondition.startswith("ValueError: state must be of a run with precondition") or "moments" in precondition
        )
