"""What can be wrong with indices, values or a payload: one message each, for the reference and the C code alike."""

from __future__ import annotations

from enum import IntEnum


class Fault(IntEnum):
    """Number of a fault; negative, as C returns it."""

    ROOM = -1
    INDICES = -2
    TRUNCATED = -3
    RANGE = -4
    SURPLUS = -5
    VALUES = -6
    LEVEL = -7


_DAMAGED = "It is damaged: drop it, or have it sent again."
_MESSAGES = {
    Fault.ROOM: "room must hold what is encoded, got less. This is an error of the codec: report it.",
    Fault.INDICES: "indices must ascend without repeats in [0, numel), got others. See SparseGradient.check.",
    Fault.TRUNCATED: f"payload must hold the entries that its header counts, got fewer. {_DAMAGED}",
    Fault.RANGE: f"payload must hold ascending indices in [0, numel), got another. {_DAMAGED}",
    Fault.SURPLUS: f"payload must hold no more bytes than its entries need, got more. {_DAMAGED}",
    Fault.VALUES: "values must be rounded to the code before they are encoded, got others. Call Wire.round in take.",
    Fault.LEVEL: f"payload must hold values of its code, got another. {_DAMAGED}",
}


def error(fault: int) -> ValueError:
    """Make the error of a fault.

    Example:
        >>> str(error(Fault.RANGE))[:55]
        'payload must hold ascending indices in [0, numel), got '
    """
    return ValueError(_MESSAGES[Fault(fault)])
