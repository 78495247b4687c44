"""``gaussiank train``."""

from __future__ import annotations

from typing import Any

from gaussiank_lab.cli.command import options_of, parts
from gaussiank_lab.train.config import Options, TrainConfig


@options_of(TrainConfig, Options)
def train(**given: Any) -> None:
    """Train one model with several methods, with the same seeds and data order, and compare them.

    Options you omit are taken from the recipe. The command starts the workers itself or, under torchrun, joins its
    job. It writes its settings, its records and one HTML report.
    """
    from gaussiank_lab.train.start import start

    given = {name: value for name, value in given.items() if value is not None}
    options = Options(**{name: given.pop(name) for name in Options.__dataclass_fields__ if name in given})
    if "methods" in given:
        given["methods"] = parts(given["methods"])
    start(options, given)
