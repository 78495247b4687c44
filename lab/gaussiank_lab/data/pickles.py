"""Read a CIFAR batch, which is a pickle, without running what is in it."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray


class _Array:
    """Stands for numpy's array while a pickle is read: keeps the state that it is given, and makes nothing of it."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _Dtype(_Array):
    """Stands for numpy's dtype."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name


def _encode(text: Any, _: Any) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes are spelled by something that is no text")
    return text.encode("latin1")


# What a pickled array names, and the harmless stand-in for each. Nothing else can be named.
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers outside itself")


def read_pickled_arrays(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of lists, texts and uint8 arrays, as Python 2 or 3 has written it.

    Unlike ``pickle.load`` it calls nothing but five stand-ins, so a hostile file can do no more than fail to be read.

    Args:
        data: bytes of the pickle.

    Returns:
        The dictionary, its keys as text, its arrays as numpy's.

    Raises:
        pickle.UnpicklingError: it is no pickle of that kind.
    """
    try:
        value = _Reader(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # noqa: BLE001  damaged bytes raise nearly anything inside the unpickler
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dictionary")
    return {_text(key): _array(item) if isinstance(item, _Array) else item for key, item in value.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _array(held: _Array) -> NDArray[np.uint8]:
    try:
        _, shape, dtype, by_column, data = held.state
    except ValueError:
        raise pickle.UnpicklingError("an array in it is cut short") from None
    sound = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not sound or not isinstance(dtype, _Dtype) or dtype.name != "u1" or not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array in it is not of unsigned bytes")
    if by_column or len(data) != math.prod(shape):
        raise pickle.UnpicklingError(f"an array in it holds {len(data)} bytes where its shape is {shape}")
    array: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(shape)
    return array
