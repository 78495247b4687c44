"""More, coarser entries against fewer exact ones, at equal measured bytes: a table of results/wire.md.

The density of each other wire is set by short runs, so that it sends the bytes of ``raw+fp32``. Each run is ``gaussiank
train`` in a directory of its own below ``--out``; a finished one is not repeated, so the script can be stopped and
started again. It prints the table from what is there.

    python benchmarks/equal_bytes.py --models lenet5,transformer
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from gaussiank_lab.report.records import Records, number, read_records
from gaussiank_lab.report.summary import bytes_text

EXACT = "raw+fp32"
WIRES = (EXACT, "rice+8bit", "rice+4bit", "rice+bf16-rice")
DENSITY = 0.001  # of the exact wire
ENTRY_BITS = {
    EXACT: 64,
    "rice+8bit": 18,
    "rice+4bit": 13,
    "rice+bf16-rice": 16,
}  # where the search starts
# not what its recipe takes
SGD = "--no-precondition --scope bucket --optimizer sgd --lr 1 --lr-schedule constant --lr-warmup-steps 0"
SETTINGS = {
    "lenet5": "--batch-size 32 --lr 0.03 --momentum-correction --steps 400",
    "transformer": f"--steps 150 --momentum-correction {SGD}",
}
PILOT_STEPS = 20
WITHIN = 0.02


def train(model: str, wire: str, density: float, seed: int, out: Path, extra: tuple[str, ...] = ()) -> Records:
    """Run, or read what an earlier call has run."""
    command = [sys.executable, "-m", "gaussiank", "train", "--model", model, "--workers", "2", "--methods", "topk"]
    command += [*SETTINGS[model].split(), "--eval-steps", "0", "--warmup", "none", "--wire", wire]
    command += ["--density", f"{density:.6f}", "--seed", str(seed), *extra]
    if not (out / "records.jsonl").exists() or read_records(out).unfinished:
        print(" ".join(command[1:]), flush=True)
        subprocess.run([*command, "--out", str(out)], stdout=subprocess.DEVNULL, check=True)
    return read_records(out)


def sent_bytes(records: Records) -> float:
    """Bytes that each worker sent in a step, on average."""
    return number(records.methods[0], "sent_bytes")


def density_for(model: str, wire: str, wanted: float, out: Path) -> float:
    """Find the density at which short runs send the wanted bytes."""
    density = DENSITY * ENTRY_BITS[EXACT] / ENTRY_BITS[wire]
    for attempt in range(4):
        pilot = ("--steps", str(PILOT_STEPS))
        factor = wanted / sent_bytes(train(model, wire, density, 0, out / f"pilot-{wire}-{attempt}", pilot))
        if abs(factor - 1) < WITHIN:
            break
        density *= factor
    return density


def rows(model: str, seeds: int, out: Path) -> list[str]:
    """Train a model with each wire and seed; one line of the table for each wire."""
    pilot = ("--steps", str(PILOT_STEPS))
    wanted = sent_bytes(train(model, EXACT, DENSITY, 0, out / f"pilot-{EXACT}", pilot))
    lines: list[str] = []
    exact: list[float] = []
    for wire in WIRES:
        density = DENSITY if wire == EXACT else density_for(model, wire, wanted, out)
        runs = [train(model, wire, density, seed, out / f"{wire}-{seed}") for seed in range(seeds)]
        metric = runs[0].metric
        each = [number(run.methods[0], metric.key) * metric.scale for run in runs]
        sent = statistics.fmean(sent_bytes(run) for run in runs)
        exact = exact or each
        better = [one - other for one, other in zip(each, exact, strict=True)]
        values = ", ".join(f"{value:.2f}" for value in each)
        lines.append(
            f"| {model}, {metric.key} | `{wire}` | {density:.5f} | {bytes_text(sent)} | {values} "
            f"| {statistics.fmean(each):.2f} | {statistics.fmean(better):+.2f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SETTINGS), help="by comma")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/equal_bytes"), help="directory of all runs")
    arguments = parser.parse_args()
    print("| model | wire | density | sent/step | each seed | mean | against raw+fp32 |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models.split(","):
        print("\n".join(rows(model, arguments.seeds, arguments.out / model)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
