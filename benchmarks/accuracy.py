"""Does it still train? Every method against dense, equal steps, three seeds: the table of results/training.md.

Each run is ``gaussiank train`` in a directory of its own below ``--out``; a finished one is not repeated, so the script
can be stopped and started again. It prints the table from what is there.

    python benchmarks/accuracy.py --models lenet5,transformer
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from gaussiank_lab.report.records import Records, number, read_records
from gaussiank_lab.report.summary import bytes_text

DENSE = "dense"
# not what its recipe takes
SGD = "--no-precondition --scope bucket --optimizer sgd --lr 1 --lr-schedule constant --lr-warmup-steps 0"
SETTINGS = {
    "lenet5": "--dataset fashion-mnist --steps 2000 --eval-steps 500 --lr 0.03",
    "resnet20": "--dataset fashion-mnist --batch-size 8 --steps 400 --eval-steps 400 --lr 0.1",
    "transformer": f"--steps 300 --eval-steps 300 {SGD}",
}
SLOW = ("transformer",)  # trained without what is only there to show that it fails
SHORT = {"resnet20": 40, "transformer": 30}  # model -> steps of a dense start, where a run is as short as the delay
RUNS = {  # name -> methods and settings; dense is trained once a seed, in the first
    "0.01": (
        "dense,topk,gaussiank,gaussiank:mode=published,randomk:feedback=false",
        "--density 0.01 --momentum-correction",
    ),
    "0.001": (
        "topk,gaussiank,gaussiank:mode=published",
        "--density 0.001 --momentum-correction",
    ),
    "0.001-dense-start": ("topk,gaussiank", "--density 0.001 --momentum-correction --warmup dense --warmup-steps"),
}


def train(model: str, name: str, seed: int, out: Path, workers: int) -> Records | None:
    methods, settings = RUNS[name]
    if name.endswith("dense-start"):
        settings += f" {SHORT[model]}"
    if model in SLOW:
        methods = ",".join(method for method in methods.split(",") if "published" not in method)
    command = [sys.executable, "-m", "gaussiank", "train", "--model", model, "--workers", str(workers)]
    command += ["--methods", methods, "--seed", str(seed), *SETTINGS[model].split(), *settings.split()]
    if (out / "records.jsonl").exists():
        records = read_records(out)
        return None if records.unfinished else records
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return read_records(out)


def rows(model: str, found: dict[tuple[str, int], Records]) -> list[str]:
    seeds = sorted({seed for _, seed in found})
    metric = next(iter(found.values())).metric
    values: dict[tuple[str, str], list[float]] = {}
    sent: dict[tuple[str, str], list[float]] = {}
    kept: dict[tuple[str, str], list[float]] = {}
    for (name, _), records in found.items():
        for record in records.methods:
            key = ("1" if record["method"] == DENSE else name, record["method"])
            values.setdefault(key, []).append(number(record, metric.key) * metric.scale)
            sent.setdefault(key, []).append(number(record, "sent_bytes"))
            kept.setdefault(key, []).append(number(record, "kept_over_k"))
    dense = statistics.fmean(values[("1", DENSE)])
    lines = []
    for key, each in values.items():
        mean = statistics.fmean(each)
        lines.append(
            f"| {model} | {key[1]} | {key[0]} | {mean:.2f} | {max(each) - min(each):.2f} | {mean - dense:+.2f} "
            f"| {statistics.fmean(kept[key]):.2f} | {bytes_text(statistics.fmean(sent[key]))} | {len(each)} |"
        )
    print(f"{model}: seeds {seeds}, {metric.key}", file=sys.stderr)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SETTINGS), help="by comma")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="directory of all runs")
    arguments = parser.parse_args()
    table = []
    for model in arguments.models.split(","):
        found = {}
        for seed in range(arguments.seeds):
            for name in RUNS:
                if name.endswith("dense-start") and model not in SHORT:
                    continue
                records = train(model, name, seed, arguments.out / model / name / str(seed), arguments.workers)
                if records is not None:
                    found[(name, seed)] = records
        table += rows(model, found) if found else []
    print("| model | method | density | mean | spread | against dense | kept/k | sent/step | seeds |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
