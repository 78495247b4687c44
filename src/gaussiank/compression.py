"""What ``compress`` returns: the state of one compressed model, whatever wraps it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist

from gaussiank import __version__, checkpoint
from gaussiank.autotune import Policy
from gaussiank.comm import await_all, require_agreement, together
from gaussiank.feedback import ErrorFeedback
from gaussiank.metrics import Metrics, Observer, bytes_per_s
from gaussiank.reducer import GradientReducer, Settings

_LOG = logging.getLogger(__name__)


class Compression:
    """The state of one compressed model: residuals, hints, step, measurements. Made by ``compress``.

    Save residuals with ``save`` or ``state_dict``.

    Attributes:
        config: the settings, which all workers share.
    """

    config: Mapping[str, object]
    _reducer: GradientReducer
    _group: dist.ProcessGroup | None

    def _configure(
        self,
        settings: Settings,
        numels: Mapping[str, int],
        group: dist.ProcessGroup | None,
        observer: Observer | None,
        *,
        mesh: str | None = None,
        modules: object = None,
    ) -> None:
        """Write down the settings, and compare them with every other worker's.

        Args:
            settings: what ``compress`` was told.
            numels: name -> numel of every parameter of the model.
            group: of all workers that train it, each of which must call this.
            observer: told of every vector, or None.
            mesh: replicas and shards, where there are such.
            modules: what is sharded together, likewise; compared, and not kept.

        Raises:
            ValueError: something differs; names it.
        """
        self._group = group
        self.config = {
            "gaussiank version": __version__,
            **settings.agreed(),
            "recorder": observer and observer.settings,  # it may communicate: every worker needs it
            "mesh": mesh,
            "model parameters": numels,
        }
        await_all(group)
        require_agreement({**self.config, "FSDP modules": modules}, group)
        self._resumed = False

    def __repr__(self) -> str:
        return text_of(self.config, self.step)

    @property
    def stands_by(self) -> bool:
        """False; deprecated: the hook stays registered while ``auto`` is dense."""
        warnings.warn(
            "stands_by is always False since the hook stays on: leave it out.", DeprecationWarning, stacklevel=2
        )
        return False

    @property
    def metrics(self) -> Metrics:
        """Measurements of the last step; complete once its backward has returned."""
        return self._reducer.measured

    @property
    def step(self) -> int:
        """Steps so far; the last backward counts until it is found that no optimizer has used it."""
        return self._reducer.step

    @property
    def resumed(self) -> bool:
        """Whether a state was loaded, or there is none to load."""
        return self._resumed

    @property
    def density(self) -> float:
        """Density of the next step."""
        return self._reducer.density

    @property
    def collective(self) -> Policy:
        """How workers agree; an ``Auto`` tells the ``link`` that it knows, and the ``way`` that proved faster."""
        return self._reducer.collective

    @property
    def feedback(self) -> ErrorFeedback:
        """The residuals, with those of the last step committed."""
        self._reducer.settle()
        return self._reducer.feedback

    def summary(self, mbit: float | None = None, latency_us: float = 50.0) -> str:
        """Tell in a sentence what this process has sent since it began, whether that hid, and what dense had taken.

        The last is a prediction by the link's rate: ``collective="auto"`` knows it, otherwise it must be given.

        Args:
            mbit: megabits a second in one direction of the link, None where ``auto`` knows it, or to leave dense out.
            latency_us: microseconds of a message, with ``mbit``.

        Raises:
            ValueError: a rate that is not above 0.

        Example:
            ``print(compression.summary(mbit=100))``
        """
        rate = None if mbit is None else bytes_per_s(mbit)
        totals = replace(self._reducer.totals)
        totals.add(self.metrics)
        ratio, link = None, getattr(self.collective, "link", None)
        if rate is not None:
            ratio = totals.dense_ratio(rate, latency_us * 1e-6, self._reducer.world_size)
        elif link is not None:
            ratio = totals.dense_ratio(link.bytes_per_s, link.latency_s, self._reducer.world_size)
        return totals.text(ratio if totals.timed else None)

    def begin_without_state(self) -> None:
        """Say that earlier steps of an optimizer were not compressed, so that there is no state to load.

        Without it, an optimizer that goes on from earlier steps is warned of: they may have left residuals.
        """
        self._resumed = True

    def discard(self) -> None:
        """Forget the last backward, in place of an optimizer's step: residuals and ``step`` are as before it.

        Call it on every worker. A mean that is zeroed or set to None before any optimizer of torch has stepped is
        forgotten without it; an optimizer that uses a mean only to find another point, as SAM does, needs it.

        Raises:
            RuntimeError: an optimizer has used the mean.
        """
        self._reducer.discard()

    def save(self, folder: str | Path) -> None:
        """Write the residuals of every worker, with velocities, hints and step, to a folder: all of them, or nothing.

        Call it on every worker, between two steps, beside saving model and optimizer; it may be the same folder.

        Args:
            folder: created if need be; one that every worker sees. What was saved there before is replaced, whole at
                any moment; other files stay.

        Raises:
            OSError: a worker could not write; the same on all, and nothing has changed.
            RuntimeError: a worker does not call it.

        Example:
            >>> import tempfile, torch
            >>> import torch.distributed as dist
            >>> from gaussiank import compress
            >>> folder = tempfile.mkdtemp()
            >>> dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
            >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(100, 10))
            >>> compression = compress(model, density=0.01)
            >>> model(torch.ones(1, 100)).sum().backward()
            >>> compression.save(f"{folder}/residuals")
            >>> compression.load(f"{folder}/residuals")
            >>> compression.step
            1
            >>> dist.destroy_process_group()
        """
        checkpoint.save(self.state_dict(), folder, self._group)
        _LOG.info("step %d saved to %s", self.step, folder)

    def load(self, folder: str | Path) -> None:
        """Go on where ``save`` was called, on every worker or on none.

        Call it on every worker, when the model is wrapped and compressed. Saved by another number of workers, the
        residuals are shared out anew by ``gaussiank.reshard``.

        Args:
            folder: given to ``save``.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: a file is missing or damaged, to the bit, or of another model; the same on all workers, and
                nothing has changed on any.
            RuntimeError: a worker does not call it.
        """
        self._load(checkpoint.load(folder, self._require_fitting, self._group))
        _LOG.info("step %d loaded from %s", self.step, folder)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, velocities, hints and step. Each worker must save its own: ``save`` does.

        Between a backward and the optimizer's step it holds what was before that backward, as the weights do; where no
        optimizer of torch was ever seen to step, the backward counts as used.

        Tensors are copies; ``torch.load(..., weights_only=True)`` reads what ``torch.save`` makes of it.
        """
        return self._reducer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; nothing changes on any worker when it does not fit on one.

        Call it on every worker.

        Raises:
            ValueError: another format, another rank or number of workers, or another model; the same on all workers.
            RuntimeError: a worker does not call it.
        """

        def fitting_step() -> int:
            self._require_fitting(state)
            return int(state["step"])

        checkpoint.require_one(together(fitting_step, self._group, what="load_state_dict"), "step")
        self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that fits every worker."""
        self._reducer.load_state_dict(state)
        self._resumed = True

    def _require_fitting(self, state: Mapping[str, Any]) -> None:
        """Raise what loading a state would, and change nothing.

        Raises:
            ValueError: it is of another mesh, or the reducer refuses it.
        """
        saved, own = state.get("mesh"), self.config["mesh"]
        if saved and own and saved != own:
            raise ValueError(
                f"state must be of a mesh of {own}, got one of {saved}. To move residuals to another mesh, save "
                "compression.dtensors() with torch.distributed.checkpoint, and load it with compression.load_dtensors."
            )
        self._reducer.require_fitting(state)


def text_of(config: Mapping[str, object], step: int) -> str:
    """Return the text of a compression: what is set, the size of its model, its step."""
    return f"Compression({listed(texts(config))}, step={step})"


def texts(config: Mapping[str, object]) -> dict[str, str]:
    """Return the text of each setting in a compression's ``config`` that is set."""
    settings = dict(config)
    numels = cast(Mapping[str, int], settings.pop("model parameters"))
    settings.pop("gaussiank version")
    settings |= {"parameters": len(numels), "numel": f"{sum(numels.values()):,}"}
    return {name: str(value) for name, value in settings.items() if value is not None}


def listed(settings: Mapping[str, str]) -> str:
    """Write settings as arguments."""
    return ", ".join(f"{name}={text}" for name, text in settings.items())
