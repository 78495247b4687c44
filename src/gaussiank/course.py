"""Which way the vectors of a step go; ``auto`` revises it between two steps, on what the last one exchanged."""

from __future__ import annotations

from functools import partial

from gaussiank.codec import Wire
from gaussiank.collectives import Collective, DenseAllReduce, Engine
from gaussiank.layout import Layout
from gaussiank.selector import Selector


class Course:
    """Ask the collective, and remember what was exchanged.

    Args:
        collective: how workers agree, joined to their group.
        engine: lets it send and wait between two steps.
        selector: says how many entries a vector sends.
        wire: how entries travel.
        world_size: number of workers.

    Attributes:
        collective: as it is in the step under way.
    """

    def __init__(
        self, collective: Collective, engine: Engine, selector: Selector, *, wire: Wire, world_size: int
    ) -> None:
        self.collective = collective
        self._engine, self._selector = engine, selector
        self._wire, self._world_size = wire, world_size
        self._asked: list[tuple[int, int]] = []  # numel and k of what is or could be sparse
        self._asked_before = self._asked  # in the last step that was no repetition

    def begin(self) -> None:
        """Begin a step."""
        self._asked = []

    def seal(self) -> None:
        """End a step that was no repetition."""
        self._asked_before = self._asked

    def revise(self, step: int) -> bool:
        """Let the collective change its mind before the step with a number; tells whether it did."""
        before = self.collective
        revised = partial(before.at_step, buckets=self._asked_before, wire=self._wire)
        self.collective = self._engine.ask(revised, f"the start of step {step}")
        return self.collective is not before

    def choose(self, layout: Layout, density: float) -> tuple[int, Collective | None]:
        """Return how many entries a vector sends, and how; None where ``auto`` would rather send all of it."""
        k = self._selector.k(layout, density)
        self._asked.append((layout.numel, k))
        return k, self._way(layout.numel, k)

    def _way(self, numel: int, k: int) -> Collective | None:
        choice = self.collective.choose(numel, k, self._world_size, self._wire)
        return None if isinstance(choice, DenseAllReduce) and choice is not self.collective else choice
