"""Settings of the wire: which index code, which value code; round, encode, decode. One reader for every release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from gaussiank.ops import RowFormat
from gaussiank.sparse import SparseGradient

from . import native, payload_v1
from .indices import INDEX_CODES, DeviceCode, SharedDraw
from .native import HEADER_BYTES, Packed, framed
from .payload import Codes, is_ours, read, read_unchecked, row_format, write
from .values import VALUE_CODES, Rounding

WIDE = "fp64"
"""Value code that the exact one becomes for float64 gradients."""


@dataclass(frozen=True)
class Wire:
    """Choose how entries travel. Exact: whatever is lost is lost in ``round``, whose error stays in the residual.

    Args:
        index: ``rice`` is the smallest on real selections; ``eliasfano`` has a size that count and numel decide;
            ``chunks``, ``chunks12`` (smaller from density 0.001 on) and ``raw`` run on accelerators; ``seed`` sends
            none, for draws that all workers share.
        values: ``bf16-rice``: those of ``bf16`` in 4 to 9 bits each; ``fp32`` (for float64 gradients ``fp64``),
            ``bf16``, ``fp16``, ``8bit``, ``4bit``, ``2bit`` or ``sign``.
        rounding: ``nearest``, or ``stochastic``: without bias, with up to twice the error. With error feedback
            nearest is better.

    Raises:
        ValueError: an unknown name, or a code that cannot round at random.

    Example:
        >>> wire = Wire.parse("rice+bf16")
        >>> values = wire.round(torch.tensor([0.1, -2.0]))
        >>> sparse = SparseGradient(torch.tensor([3, 900], dtype=torch.int32), values, numel=1000)
        >>> payload = wire.encode(sparse)
        >>> payload.numel() - HEADER_BYTES, wire.decode(payload).values.tolist()
        (8, [0.10009765625, -2.0])
    """

    index: str = "rice"
    values: str = "bf16-rice"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.index not in INDEX_CODES:
            raise ValueError(f"index must be one of {', '.join(INDEX_CODES)}, got {self.index!r}. Correct it.")
        if self.values not in VALUE_CODES:
            raise ValueError(f"values must be one of {', '.join(VALUE_CODES)}, got {self.values!r}. Correct it.")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding must be nearest or stochastic, got {self.rounding!r}. Correct it.")
        if self.rounding == "stochastic" and not VALUE_CODES[self.values].stochastic:
            raise ValueError(f"rounding must be nearest for {self.values} values, got 'stochastic'. Leave it out.")

    @classmethod
    def parse(cls, text: str) -> Wire:
        """Make a wire from ``index+values`` or ``index+values+rounding``.

        Raises:
            ValueError: another form, or an unknown name.

        Example:
            >>> Wire.parse("chunks+8bit+stochastic")
            Wire(index='chunks', values='8bit', rounding='stochastic')
            >>> str(Wire.parse("rice+fp32"))
            'rice+fp32'
        """
        words = text.strip().split("+")
        if len(words) not in (2, 3):
            raise ValueError(f"wire must be index+values or index+values+rounding, got {text!r}. See 'rice+8bit'.")
        given: dict[str, Any] = dict(zip(("index", "values", "rounding"), words, strict=False))
        return cls(**given)

    def __str__(self) -> str:
        return f"{self.index}+{self.values}" + ("" if self.rounding == "nearest" else f"+{self.rounding}")

    @cached_property
    def exact(self) -> bool:
        """Whether ``round`` changes nothing."""
        return VALUE_CODES[self.values].exact

    @cached_property
    def varies(self) -> bool:
        """Whether the size of a payload depends on its entries, and not on their count alone."""
        return INDEX_CODES[self.index].varies or VALUE_CODES[self.values].varies

    @cached_property
    def on_device(self) -> bool:
        """Whether an accelerator encodes and decodes payloads itself, without waiting."""
        return isinstance(INDEX_CODES[self.index], DeviceCode) and not VALUE_CODES[self.values].varies

    def round(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Round float32 or float64 ``[kept]`` values to what the wire can carry; a new tensor of the same dtype.

        Finite values stay finite; infinities and NaN stay visible. ``values - round(values)`` belongs to the residual.

        Args:
            values: entries as they were selected. Not modified.
            generator: source of stochastic rounding; torch's own when None.
        """
        return self._codes(values.dtype).values.round(values, self.rounding, generator)

    def encode(
        self, sparse: SparseGradient, *, capacity: int | None = None, shared: SharedDraw | None = None
    ) -> Tensor:
        """Write one payload.

        Args:
            sparse: entries whose values are rounded.
            capacity: entries that the payload has room for; then its size is ``max_bytes(capacity, numel)`` whatever
                it holds. None: as short as it can be.
            shared: how indices are drawn, for the index code ``seed``.

        Returns:
            uint8 ``[bytes]`` on the device of ``sparse``. On an accelerator, index codes other than ``chunks``,
            ``chunks12``, ``raw`` and ``seed``, and values whose size varies, wait for the device and are encoded on
            the CPU.

        Raises:
            ValueError: more entries than ``capacity``, indices out of order, or values that are not rounded; on an
                accelerator only the first is checked.

        Example:
            >>> sparse = SparseGradient(torch.tensor([7], dtype=torch.int32), torch.tensor([0.5]), numel=1000)
            >>> Wire().encode(sparse).numel(), Wire().encode(sparse, capacity=10).numel() == Wire().max_bytes(10, 1000)
            (32, True)
        """
        if capacity is not None and sparse.kept > capacity:
            raise ValueError(f"capacity must be at least the {sparse.kept} entries kept, got {capacity}. Cap them.")
        capacity = None if capacity is None else min(capacity, sparse.numel)
        codes = self._codes(sparse.values.dtype).with_draw(shared)
        device = sparse.indices.device
        if not self.on_device:
            sparse = SparseGradient(sparse.indices.cpu(), sparse.values.cpu(), sparse.numel)
        payload = write(sparse, codes, sparse.kept if capacity is None else capacity).to(device)
        return payload if capacity is None else self._with_room(payload, capacity, sparse)

    def pack(
        self,
        sparse: SparseGradient,
        *,
        capacity: int | None = None,
        frame: int = 0,
        generator: torch.Generator | None = None,
        shared: SharedDraw | None = None,
    ) -> Packed:
        """Round and encode at once: what ``encode`` makes of values that ``round`` has rounded.

        Args:
            sparse: entries as they were selected.
            capacity: as for ``encode``.
            frame: without a capacity: pad a payload of at most this many bytes to it, then append its size in 8 bytes.
            generator: source of stochastic rounding.
            shared: as for ``encode``.

        Example:
            >>> packed = Wire().pack(SparseGradient(torch.tensor([7]).int(), torch.tensor([0.1]), numel=1000))
            >>> packed.size, (Wire().decode(packed.row).values + packed.error).tolist() == torch.tensor([0.1]).tolist()
            (32, True)
        """
        codes = self._codes(sparse.values.dtype)
        if self.rounding == "nearest" and (capacity is None or sparse.kept <= capacity):
            slots = sparse.kept if capacity is None else min(capacity, sparse.numel)
            packed = native.write_payload(codes, sparse, slots, frame, rounding=True)
            if packed is not None:
                return packed if capacity is None else packed._replace(row=self._with_room(packed.row, slots, sparse))
        values = sparse.values if self.exact else self.round(sparse.values, generator)
        row = self.encode(SparseGradient(sparse.indices, values, sparse.numel), capacity=capacity, shared=shared)
        size = row.numel()
        row = framed(row, frame) if 0 < size <= frame else row
        return Packed(row, size, None if self.exact else sparse.values - values)

    def decode(
        self,
        payload: Tensor,
        numel: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        capacity: int | None = None,
        shared: SharedDraw | None = None,
    ) -> SparseGradient:
        """Read one payload that this wire wrote; bytes behind it are ignored.

        On the CPU the payload is untrusted and all of it is checked. On an accelerator, with ``capacity`` given and an
        index code that can, nothing waits for the device and nothing is checked: unused room comes back as zeros at the
        last indices. Otherwise the payload is moved to the CPU first.

        Args:
            payload: uint8 ``[bytes]``.
            numel: length that is expected; None takes the header's word.
            dtype: float32 or float64, of the values; None: float32, float64 for ``fp64``.
            capacity: what ``encode`` was given.
            shared: how indices are drawn, for the index code ``seed``.

        Raises:
            ValueError: foreign, truncated or damaged, of another wire, or not what was expected.
        """
        codes = self._codes(dtype or torch.float32)
        codes = codes if shared is None else codes.with_draw(shared)
        require_payload(payload)
        if payload.device.type != "cpu" and capacity is not None and self.on_device:
            if numel is None:
                raise ValueError("numel must be given for a payload on an accelerator, got None. Pass the length.")
            return with_dtype(read_unchecked(payload, codes, min(capacity, numel), numel), dtype)
        body = payload.cpu().contiguous()
        found = None if numel is None else native.read_payload(body, codes, numel)
        sparse = read(body, numel, self._accepted(dtype), shared) if found is None else found
        sparse = sparse if sparse.values.dtype == dtype else with_dtype(sparse, dtype)
        if payload.device.type == "cpu":
            return sparse
        return SparseGradient(sparse.indices.to(payload.device), sparse.values.to(payload.device), sparse.numel)

    @lru_cache(maxsize=4096)  # noqa: B019  a wire is a small value: the one that is kept serves all that equal it
    def max_bytes(self, k: int, numel: int, dtype: torch.dtype = torch.float32) -> int:
        """Return the most bytes that a payload of ``k`` entries, or fewer, can take, also of a shorter vector.

        Args:
            k: entries; more than ``numel`` count as ``numel``.
            numel: length of the dense vector.
            dtype: dtype of the values that are encoded.

        Example:
            >>> Wire.parse("rice+bf16").max_bytes(1000, 10**6), Wire.parse("raw+fp32").max_bytes(1000, 10**6)
            (3527, 8020)
        """
        codes = self._codes(dtype)
        k = min(k, numel)
        index_bytes = codes.index.max_bytes(k, numel) if k or isinstance(codes.index, DeviceCode) else 0
        return HEADER_BYTES + index_bytes + codes.values.bytes_for(k)

    def usual_bytes(self, k: int, numel: int, dtype: torch.dtype = torch.float32) -> int:
        """Return about what ``k`` entries take that were selected by magnitude and lie anywhere: ``max_bytes`` or less.

        Example:
            >>> [Wire("rice", values).usual_bytes(1000, 10**6) for values in ("bf16", "bf16-rice")]
            [3527, 2408]
        """
        k, values = min(k, numel), self._codes(dtype).values
        return self.max_bytes(k, numel, dtype) - values.bytes_for(k) + values.usual_bytes(k)

    @lru_cache(maxsize=4096)  # noqa: B019  a wire is a small value: the one that is kept serves all that equal it
    def row_format(self, slots: int, numel: int) -> RowFormat | None:
        """Return where a row of so many float32 entries holds what, for a kernel; None: there is none for this wire."""
        codes = self._codes(torch.float32)
        return row_format(codes, min(slots, numel), numel) if self.rounding == "nearest" else None

    def entries_within(self, max_bytes: int, numel: int, dtype: torch.dtype = torch.float32) -> int:
        """Return how many entries fit into ``max_bytes``, wherever they lie.

        Raises:
            ValueError: not even one fits.

        Example:
            >>> Wire.parse("rice+bf16").entries_within(3527, 10**6)
            1000
        """
        least = self.max_bytes(1, numel, dtype)
        if max_bytes < least:
            raise ValueError(f"max_bytes must be at least {least}, a header and one entry, got {max_bytes}. Raise it.")
        low, high = 1, numel
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.max_bytes(middle, numel, dtype) <= max_bytes else (low, middle - 1)
        return low

    def _with_room(self, payload: Tensor, capacity: int, sparse: SparseGradient) -> Tensor:
        """Fill a payload up to the size that its capacity has at most."""
        unused = self.max_bytes(capacity, sparse.numel, sparse.values.dtype) - payload.numel()
        return torch.cat([payload, payload.new_zeros(unused)]) if unused else payload

    @lru_cache(maxsize=4096)  # noqa: B019  a wire is a small value: the one that is kept serves all that equal it
    def _codes(self, dtype: torch.dtype) -> Codes:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"values must be float32 or float64, got {dtype}. Convert them.")
        wide = self.values == "fp32" and dtype == torch.float64
        return Codes(INDEX_CODES[self.index], VALUE_CODES[WIDE if wide else self.values])

    @lru_cache(maxsize=4096)  # noqa: B019  a wire is a small value: the one that is kept serves all that equal it
    def _accepted(self, dtype: torch.dtype | None) -> tuple[str, ...]:
        """Return the texts of the codes that a payload may have: exact ones have their width when no dtype is given."""
        dtypes = (torch.float32, torch.float64) if dtype is None else (dtype,)
        return tuple(dict.fromkeys(self._codes(wanted).text for wanted in dtypes))


def require_payload(payload: Tensor) -> None:
    """Raise ``ValueError`` unless ``payload`` is a flat uint8 tensor."""
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ValueError(
            f"payload must be a flat uint8 tensor, got {payload.dtype} of shape {tuple(payload.shape)}. "
            "Pass it as sent."
        )


def with_dtype(sparse: SparseGradient, dtype: torch.dtype | None) -> SparseGradient:
    """Widen the values to ``dtype``; None leaves them.

    Raises:
        ValueError: they would be narrowed.
    """
    if dtype is None or sparse.values.dtype == dtype:
        return sparse
    if dtype != torch.float64:
        raise ValueError(f"dtype must hold the payload's {sparse.values.dtype}, got {dtype}. Workers disagree on it.")
    return SparseGradient(sparse.indices, sparse.values.to(dtype), sparse.numel)


def decode(
    payload: Tensor,
    numel: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    shared: SharedDraw | None = None,
) -> SparseGradient:
    """Read a payload of any format and any codes; on an accelerator, of format 1 (see ``Wire.decode`` for format 2).

    Args:
        payload: uint8 ``[bytes]``. On the CPU it is untrusted: all of it is checked.
        numel: length that is expected; on the CPU None takes the header's word.
        dtype: dtype of the values that is expected; on the CPU None takes the header's word.
        shared: how indices are drawn, if they are not sent.

    Raises:
        ValueError: foreign, truncated or damaged, of a version that is not known, or not what was expected.

    Example:
        >>> sparse = SparseGradient(torch.tensor([7], dtype=torch.int32), torch.tensor([0.5]), numel=1000)
        >>> decode(Wire("eliasfano", "8bit").encode(sparse)).indices.tolist(), decode(payload_v1.encode(sparse)).kept
        ([7], 1)
    """
    if payload.device.type == "cpu":
        require_payload(payload)
        if is_ours(payload) and int(payload[0]) != payload_v1.VERSION:
            return with_dtype(read(payload, numel, shared=shared), dtype)
    return payload_v1.decode(payload, numel, dtype)


def default_wire(parameters: Iterable[Tensor]) -> Wire:
    """Choose ``rice+bf16-rice`` for parameters on a CPU, and else ``chunks+bf16``, which never waits for a device.

    The gradient's dtype makes no difference: what rounding takes off stays in the residual, in float64 too.

    Example:
        >>> str(default_wire([torch.zeros(3)])), str(default_wire([torch.zeros(3, device="meta")]))
        ('rice+bf16-rice', 'chunks+bf16')
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return Wire("rice", "bf16-rice") if on_cpu else Wire("chunks", "bf16")


def chosen_wire(wire: str | Wire | None, parameters: Iterable[Tensor]) -> Wire:
    """Make the wire that a user has given, by name or not at all.

    Raises:
        ValueError: an unknown name, or float64 values of gradients that are not.

    Example:
        >>> str(chosen_wire("chunks+8bit", [])), str(chosen_wire(None, []))
        ('chunks+8bit', 'rice+bf16-rice')
    """
    held = list(parameters)
    chosen = Wire.parse(wire) if isinstance(wire, str) else wire or default_wire(held)
    if chosen.values == WIDE and any(parameter.dtype != torch.float64 for parameter in held):
        raise ValueError(
            f"wire must carry float32 gradients, got {chosen}. Write {chosen.index}+fp32: it sends float64 ones whole."
        )
    return chosen
