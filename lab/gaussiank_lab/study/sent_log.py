"""What was sent at every step: kept/k of each since the last sample, and how old residuals are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient
from gaussiank_lab.study.ages import Ages, Sent


class SentLog:
    """Put aside what each step sends, and count it when a sample is written.

    What is done at every step costs as much as a sample when steps are short, so a step only appends to a list.

    Args:
        numels: name -> numel of every parameter whose residuals age; none where there are no residuals.

    Example:
        >>> import torch
        >>> log = SentLog({"w": 4})
        >>> one = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.ones(1), 4)
        >>> log.note(0, 2, Layout(("w",), (4,)), one)
        >>> log.record(step=0)["since"]
        {'step': [0], 'k': [2], 'kept': [1]}
    """

    def __init__(self, numels: Mapping[str, int]) -> None:
        self._ages = Ages(numels) if numels else None
        self._waiting: list[Sent] = []
        self._entries, self._limit = 0, max(10_000, sum(numels.values()) // 8)  # at most a byte an entry of the model
        self._since: dict[int, list[int]] = {}  # step -> [k, kept]

    def note(self, step: int, k: int, layout: Layout, sparse: SparseGradient | None) -> None:
        """Note what a step sent of the parameters in ``layout``; None for all."""
        self._waiting.append((step, k, layout, sparse))
        self._entries += 0 if sparse is None else sparse.indices.numel()
        if self._entries > self._limit:
            self.read()

    def read(self) -> None:
        """Count what was put aside."""
        waiting, self._waiting, self._entries = self._waiting, [], 0
        for step, k, layout, sparse in waiting:
            row = self._since.setdefault(step, [0, 0])
            row[0] += k
            row[1] += layout.numel if sparse is None else sparse.indices.numel()
        if self._ages is not None:
            self._ages.sent(waiting)

    def record(self, step: int) -> dict[str, Any]:
        """Return the fields of a sample's record, and begin anew."""
        self.read()
        since, self._since = self._since, {}
        counts = {
            "step": list(since), "k": [k for k, _ in since.values()], "kept": [kept for _, kept in since.values()]
        }  # fmt: skip
        return {"since": counts} if self._ages is None else {"age": self._ages.summary(step), "since": counts}

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far."""
        self.read()
        since = {step: list(row) for step, row in self._since.items()}
        return {"since": since, "ages": None if self._ages is None else self._ages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; an empty state begins anew.

        Raises:
            ValueError: the ages are of another model.
        """
        self._waiting, self._entries = [], 0
        self._since = {step: list(row) for step, row in state.get("since", {}).items()}
        if self._ages is not None and state.get("ages") is not None:
            self._ages.load_state_dict(state["ages"])
