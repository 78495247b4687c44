"""``gaussiank bench predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that bench net has written.")],
) -> None:
    """Compare the cost model with a run of bench net: fitted on half of its settings, judged on the rest.

    Compute time is taken from the run without exchange. Predicted are DDP, its 16-bit hooks, and ours with allgather,
    split and leader. The run must have models, not vectors.
    """
    from rich.console import Console

    from gaussiank_lab.bench.net.predict import show_predictions

    show_predictions(run, Console())
