"""What the workers of all frameworks look at."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent


def example(name: str) -> ModuleType:
    """Import a file of ``examples``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def added(**names: Any) -> Any:
    """Run the lines that docs/frameworks.md adds to a script, with these names; returns all names afterwards."""
    exec(os.environ["ADDED"], names)
    return names


def said(call: Callable[[], Any]) -> str:
    """Return the error of a call, or its warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except (ValueError, RuntimeError, ImportError) as error:
            return f"{type(error).__name__}: {error}"
    ours = [str(one.message) for one in caught if "gaussiank" in one.filename or "compress" in str(one.message)]
    return " | ".join(f"warning: {one}" for one in ours) or "nothing"


def differing(model: torch.nn.Module, compression: Any, other: torch.nn.Module, again: Any) -> list[str]:
    """Name what differs between two runs: parameters, residuals, second moments, the step."""
    states = compression.state_dict(), again.state_dict()
    pairs = {name: (one, dict(other.named_parameters())[name]) for name, one in model.named_parameters()}
    for name, held in states[0]["feedback"]["residual"].items():
        pairs[f"residual {name}"] = held, states[1]["feedback"]["residual"][name]
    for name, held in states[0].get("precondition", {}).get("moment", {}).items():
        pairs[f"moment {name}"] = held, states[1]["precondition"]["moment"][name]
    steps = [] if states[0]["step"] == states[1]["step"] else ["step"]
    return steps + [name for name, (one, two) in pairs.items() if not torch.equal(one, two)]


def write(folder: str, rank: int, **found: Any) -> None:
    """Hand what was found to the test."""
    Path(folder, f"found-{rank}.json").write_text(json.dumps(found))
