"""Run the parts, each in a process of its own, and write what they say after each: one JSON file and one page."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gaussiank_lab.gpu_check.answer import Answer, Check
from gaussiank_lab.gpu_check.kernels import kernels_of
from gaussiank_lab.gpu_check.parts import PARTS
from gaussiank_lab.machine import origin
from gaussiank_lab.outputs import write_whole

FORMAT = 1
_LIMIT_S = 540.0


def require_gpu() -> None:
    """Raise where there is no GPU to check.

    Raises:
        ValueError: so it is.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"gpu-check must run where torch sees a CUDA device, got torch {torch.__version__} and none. Run it on a "
            "machine with a GPU; what can be tested without one, the tests do."
        )


def run(out: Path, parts: Sequence[str] = (), device: str = "cuda", tell: Callable[[str], object] = print) -> int:
    """Answer what can be answered within nine minutes.

    Args:
        out: folder to write to.
        parts: names of those to run; none for all.
        device: to check.
        tell: called with a line for each part.

    Returns:
        1 where a part has found a fault, else 0.

    Raises:
        ValueError: a part has another name.
    """
    names = [part.name for part in PARTS]
    for name in parts:
        if name not in names:
            raise ValueError(f"parts must be among {', '.join(names)}, got {name!r}. Correct it.")
    began = time.monotonic()
    found: dict[str, Any] = {"format": FORMAT, **origin(), **described(torch.device(device)), "parts": []}
    stem = out / f"gpu-check-{_slug(str(found['device']))}"
    for part in PARTS:
        left_s = _LIMIT_S - (time.monotonic() - began)
        if part.name in (parts or names):
            answer, took_s = answered(part, device, min(part.limit_s, left_s))
            found["parts"].append(
                {"name": part.name, "question": part.question, "took_s": took_s, **dataclasses.asdict(answer)}
            )
            tell(f"{part.name}: {_verdict(answer.passed)} – {answer.said} ({took_s:.0f} s)")
            write_whole(stem.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
            write_whole(stem.with_suffix(".md"), page(found).encode())
    tell(f"written: {stem}.json, {stem}.md")
    return int(any(part["passed"] is False for part in found["parts"]))


def answered(part: Check, device: str, limit_s: float) -> tuple[Answer, float]:
    """Run a part in a process of its own: an error on a GPU leaves nothing that another part could use."""
    if limit_s <= 5:
        return Answer(None, "not begun: the nine minutes were over"), 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "gaussiank_lab.gpu_check.run", part.name, device, str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
            said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            answer = Answer(passed=False, said=f"ended with status {done.returncode}: {said}")
        except subprocess.TimeoutExpired:
            answer = Answer(None, f"no answer within {limit_s:.0f} s: it hangs, or this machine is slow")
        if file.exists():
            answer = Answer(**json.loads(file.read_text(encoding="utf-8")))
    return answer, round(time.monotonic() - began, 1)


def described(device: torch.device) -> dict[str, Any]:
    """Say what was checked, and with what."""
    if device.type != "cuda":
        return {"device": "cpu", "kernels": kernels_of(device)}
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "devices": torch.cuda.device_count(),
        "compute_capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "processors": card.multi_processor_count,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": _driver(),
        "triton": _version_of("triton"),
        "kernels": kernels_of(device),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _verdict(passed: bool | None) -> str:
    return {True: "right", False: "WRONG", None: "not decided"}[passed]


def page(found: dict[str, Any]) -> str:
    """Write what was found as a page.

    Example:
        >>> text = page({"device": "a card", "parts": [], "torch": "2.13"})
        >>> text.splitlines()[0]
        '# a card'
    """
    about = ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("parts", "device", "format"))
    lines = [f"# {found['device']}", "", f"By `gaussiank gpu-check`: {about}.", ""]
    lines += ["| part | question | answer | |", "|---|---|---|---|"]
    for part in found["parts"]:
        lines.append(f"| {part['name']} | {part['question']} | {_verdict(part['passed'])} | {_cell(part['said'])} |")
    for part in found["parts"]:
        if part["rows"]:
            columns = list(dict.fromkeys(name for row in part["rows"] for name in row))
            lines += ["", f"## {part['name']}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |" for row in part["rows"]]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _answer(name: str, device: str, file: str) -> None:
    part = next(one for one in PARTS if one.name == name)
    where = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    answer = part.answer(where)
    Path(file).write_text(json.dumps(dataclasses.asdict(answer)), encoding="utf-8")
    os._exit(0)  # nothing that is left of a GPU's context may hang


if __name__ == "__main__":
    _answer(*sys.argv[1:])
