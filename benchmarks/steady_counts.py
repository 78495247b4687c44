"""How many entries does a compressor really send in the long run, under error feedback?

Every step adds independent normal noise to the residual, the compressor chooses, and what it chose is removed. The
residual leaves the normal law within a few dozen steps; the counts of the second half of the steps are reported.

    python benchmarks/steady_counts.py
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from gaussiank.compressors import SelectContext, parse_compressor

METHODS = (
    "topk,trimmedtopk,mstopk,chunktopk,dgc,gaussiank,gaussiank:mode=published,gaussiank:mode=paper,"
    "sidco,sidco:mode=gammapareto,sidco:mode=pareto"
)


def kept_over_k(method: str, numel: int, density: float, steps: int, seed: int) -> list[float]:
    compressor, random = parse_compressor(method), torch.Generator().manual_seed(seed)
    k, residual, hint, found = max(1, round(density * numel)), torch.zeros(numel), None, []
    for step in range(steps):
        residual += torch.randn(numel, generator=random)
        indices, hint = compressor.select(residual, k, SelectContext(step, hint=hint))
        residual[indices] = 0
        found.append(indices.numel() / k)
    return found[steps // 2 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=METHODS, help="by comma; settings by colon")
    parser.add_argument("--numel", type=int, default=100_000, help="entries")
    parser.add_argument("--densities", default="0.01,0.001", help="by comma")
    parser.add_argument("--turns", type=int, default=6, help="steps, in units of 1 / density")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for density in map(float, arguments.densities.split(",")):
        for method in arguments.methods.split(","):
            steps = round(arguments.turns / density)
            found = kept_over_k(method, arguments.numel, density, steps, arguments.seed)
            row = {
                "question": "steady_counts",
                "method": method,
                "numel": arguments.numel,
                "density": density,
                "steps": steps,
                "kept_over_k_mean": round(statistics.mean(found), 3),
                "kept_over_k_min": round(min(found), 3),
                "kept_over_k_max": round(max(found), 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
