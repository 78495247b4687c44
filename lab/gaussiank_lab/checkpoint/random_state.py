"""Random numbers that go on where they were: torch, CUDA, Python and NumPy, on this worker."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator, as tensors and plain values.

    Example:
        >>> state = random_state(torch.device("cpu"))
        >>> first = random.random(), float(np.random.random()), float(torch.rand(()))
        >>> restore_random_state(state, torch.device("cpu"))
        >>> (random.random(), float(np.random.random()), float(torch.rand(()))) == first
        True
    """
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  a user's code may draw from the global generator
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "kind": numpy["bit_generator"],
            "words": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "place": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every global generator to a saved state."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002  a user's code may draw from the global generator
        {
            "bit_generator": numpy["kind"],
            "state": {"key": numpy["words"].numpy().astype(np.uint32), "pos": numpy["place"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
