"""Lightning: a ``Callback`` that compresses the wrapped model, and saves all workers' residuals beside checkpoints."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from gaussiank.compression import Compression
from gaussiank.doors import compress as compress_model

from . import FOLDER, load_beside, require_version

require_version("lightning", "2.1")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402  only once it is known to be there

_LOG = logging.getLogger(__name__)


class CompressionCallback(Callback):  # type: ignore[misc]  # untyped where lightning is not installed
    """Let Lightning's ``Trainer`` exchange sparse gradients, with ``strategy="ddp"``; on a CPU too.

    Lightning ignores ``DDPStrategy(ddp_comm_hook=)`` on a CPU without a word. Residuals of every worker lie beside a
    checkpoint, in ``gaussiank/NAME OF THE CHECKPOINT``, and are loaded with ``fit(ckpt_path=...)``; they are removed
    with it, and must be moved with it. What was sent is logged every ``log_every_n_steps``. Clip with ``clip_norm``,
    not with ``Trainer(gradient_clip_val=)``, which clips the mean.

    Args:
        *density: as for ``gaussiank.compress``.
        **settings: as for ``gaussiank.compress``. The ``GradScaler`` and ``total_steps`` need not be given.

    Attributes:
        compression: of the model that is trained; None before ``on_train_start``.

    Raises:
        ValueError: in ``setup``: there is one process alone, or another such callback.

    Example:
        ``Trainer(strategy="ddp", devices=2, callbacks=[CompressionCallback(density=0.01)])``
    """

    def __init__(self, *density: Any, **settings: Any) -> None:
        self.compression: Compression | None = None
        self._density, self._settings = density, settings
        self._model: nn.Module | None = None
        self._saved_step: int | None = None

    def __repr__(self) -> str:
        return f"CompressionCallback({self.compression or self._settings})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer, and follow its checkpoints."""
        if stage != "fit":
            return
        if trainer.world_size == 1:
            raise ValueError(
                "trainer must have several processes, got one: there is nobody to exchange gradients with. Give "
                'Trainer(strategy="ddp", devices=2), or leave CompressionCallback out.'
            )
        if sum(isinstance(one, CompressionCallback) for one in trainer.callbacks) > 1:
            raise ValueError("callbacks must hold one CompressionCallback, got more. Leave the others out.")
        if not isinstance(getattr(trainer.strategy.save_checkpoint, "__self__", None), _Checkpoints):
            checkpoints = _Checkpoints(self, trainer.strategy)
            trainer.strategy.save_checkpoint = checkpoints.save
            trainer.strategy.remove_checkpoint = checkpoints.remove

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compress the model, which is wrapped by now, and load its residuals where the run resumes."""
        model = trainer.strategy.model
        if model is not self._model:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            steps = trainer.estimated_stepping_batches
            total = int(steps) if steps not in (-1, float("inf")) else None
            settings = {"scaler": scaler, "total_steps": total, **self._settings}
            self.compression, self._model = compress_model(model, *self._density, **settings), model
        if trainer.ckpt_path:
            assert self.compression is not None
            path = Path(trainer.ckpt_path)
            found = load_beside(self.compression, _beside(path), path)
            if found and self._saved_step not in (None, self.compression.step):
                raise ValueError(
                    f"{_beside(path)} must be of step {self._saved_step} as {path} is, got step "
                    f"{self.compression.step}. A run ended while it saved: resume from an older checkpoint."
                )

    def on_train_batch_end(self, trainer: Trainer, *given: Any, **named: Any) -> None:
        """Log what the last step has sent."""
        if self.compression is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            metrics = {f"gaussiank/{name}": value for name, value in self.compression.metrics.as_dict().items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the run has sent."""
        if self.compression is not None and trainer.is_global_zero:
            _LOG.info("%s", self.compression.summary())

    def state_dict(self) -> dict[str, Any]:
        """Return the step, by which residuals beside a checkpoint are known to be its own. Lightning keeps rank 0's."""
        return {} if self.compression is None else {"step": self.compression.state_dict()["step"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Learn the step of a checkpoint."""
        self._saved_step = state_dict.get("step")


def _beside(path: Path) -> Path:
    """Return where the residuals of a checkpoint are; of a link, those of what it leads to."""
    path = path.resolve()
    return path.parent / FOLDER / path.name


class _Checkpoints:
    """Follow the checkpoints of a strategy, which Lightning saves and removes on every worker.

    Args:
        callback: whose residuals go with them.
        strategy: of the trainer.
    """

    def __init__(self, callback: CompressionCallback, strategy: Any) -> None:
        self._callback, self._strategy = callback, strategy
        self._save, self._remove = strategy.save_checkpoint, strategy.remove_checkpoint

    def save(self, checkpoint: dict[str, Any], filepath: str | Path, *given: Any, **named: Any) -> None:
        """Save residuals first, so that a checkpoint that is there has its own; none beside weights alone."""
        compression = self._callback.compression
        if compression is not None and "optimizer_states" in checkpoint:
            compression.save(_beside(Path(filepath)))
        self._save(checkpoint, filepath, *given, **named)

    def remove(self, filepath: str | Path) -> None:
        """Remove a checkpoint, and then its residuals."""
        folder = _beside(Path(filepath))
        self._remove(filepath)
        if self._strategy.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
