"""Draw the figures of docs/cost-model.md and results/scale.md, and print the numbers that the pages quote.

python scripts/make_cost_figures.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gaussiank_lab.cluster.figures import gain_figure, save, scale_figure
from gaussiank_lab.cluster.studies import gain_rows, scale_rows

OUT = Path(__file__).parent.parent / "docs/images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--suffix", default=".svg", choices=[".svg", ".png"])
    arguments = parser.parse_args()
    gains, scale = gain_rows(), scale_rows()
    print(save(gain_figure(gains), arguments.out / f"gain-map{arguments.suffix}"))
    print(save(scale_figure(scale), arguments.out / f"scale{arguments.suffix}"))
    for row in scale:
        if row.every in (1, 10, 100, 500):
            rate, step = f"{row.bandwidth_bits_s / 1e6:6.0f} Mb/s", f"step {row.step_s:8.2f} s"
            sent = f"{row.sent_bytes / 1e6:8.1f} MB sent"
            print(f"{rate}  {row.method:10}  H {row.every:3}  {step}  efficiency {100 * row.efficiency:5.1f} %  {sent}")


if __name__ == "__main__":
    main()
