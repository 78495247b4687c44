"""From tensors to sketches: what the recorder computes on the training's own device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gaussiank import ops
from gaussiank_lab.study.sketch import LAYER_BITS, MANTISSA_BITS, Counts, Floats, Sketch


def sketch_of(vector: Tensor) -> Sketch:
    """Return the sketch of a flat vector; what is not float32 is converted.

    Args:
        vector: float ``[numel]``. Not modified.

    Example:
        >>> import torch
        >>> sketch_of(torch.tensor([1.0, float("nan")])).nonfinite
        1
    """
    return sketch_layers(vector, [vector.numel()])[0]


def sketch_layers(vector: Tensor, numels: Sequence[int]) -> tuple[Sketch, Counts, Floats]:
    """Sketch a vector as a whole, and coarsely (``LAYER_BITS``) each of the layers that lie end to end in it.

    Args:
        vector: float ``[numel]``. Not modified.
        numels: lengths of the layers.

    Returns:
        The sketch of all, and int64 ``[layers, 2, bins]`` counts and float64 ``[layers, bins]`` energies of each.
    """
    found = ops.magnitudes(vector, numels, MANTISSA_BITS, LAYER_BITS)
    whole = Sketch(found.counts.numpy(), found.energy.numpy())
    return whole, found.part_counts.numpy(), found.part_energy.numpy()
