"""Transformers' ``Trainer``: compress the model that it wraps, save and resume residuals, log what was sent."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from gaussiank.compression import Compression
from gaussiank.doors import compress as compress_model
from gaussiank.feedback import AdamWarning, told_of_adam

from . import FOLDER, load_beside, require_version

require_version("transformers", "4.47")

from transformers import Trainer, TrainerCallback  # noqa: E402  only once it is known to be there
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint  # noqa: E402

_LOG = logging.getLogger(__name__)


def compress(trainer: Trainer, *density: Any, **settings: Any) -> CompressionCallback:
    """Let a ``Trainer`` exchange sparse gradients; before ``trainer.train``, on every worker.

    Residuals are saved with each of the trainer's checkpoints, a file for each worker in the folder ``gaussiank``
    there, and loaded with ``trainer.train(resume_from_checkpoint=...)``. What was sent is logged with the loss.
    Set ``max_grad_norm=0`` in the ``TrainingArguments`` and give ``clip_norm``: the trainer's own clips the mean. Its
    default is AdamW with momentum: with ``optim="sgd"`` and ``precondition=AdamRows()`` the step is AdamW's.

    Args:
        trainer: made for several processes, and not compressed yet.
        *density: as for ``gaussiank.compress``.
        **settings: as for ``gaussiank.compress``; ``scaler`` and ``total_steps`` are the trainer's.

    Returns:
        A callback of the trainer; its ``compression`` is there once training has begun.

    Raises:
        ValueError: there is one process alone, or the trainer is compressed already.

    Example:
        ``compress(trainer, density=0.01)``
    """
    if trainer.args.world_size == 1:
        raise ValueError(
            "trainer must have several processes, got one: there is nobody to exchange gradients with. Start with "
            "torchrun --nproc-per-node 2, or leave compress out."
        )
    if any(isinstance(one, CompressionCallback) for one in trainer.callback_handler.callbacks):
        raise ValueError("trainer must be compressed once, got one that is. Leave the second compress out.")
    adam = settings.get("precondition") is None and _has_momentum_of_adam(trainer)
    norm = trainer.args.max_grad_norm or 0.0
    if (adam or norm > 0) and trainer.args.process_index == 0:
        warnings.warn(_told(adam=adam, norm=norm), AdamWarning if adam else UserWarning, stacklevel=2)
    callback = CompressionCallback(trainer, density, settings, told=adam)
    trainer.add_callback(callback)
    return callback


def _has_momentum_of_adam(trainer: Trainer) -> bool:
    """Tell whether an optimizer of Adam's kind with momentum is given, or will be made by the arguments."""
    if trainer.optimizer is not None:
        return any(group.get("betas", (0.0,))[0] > 0 for group in trainer.optimizer.param_groups)
    return "adam" in str(getattr(trainer.args.optim, "value", trainer.args.optim)) and trainer.args.adam_beta1 > 0


def _told(*, adam: bool, norm: float) -> str:
    """Say in one warning what costs in the trainer's arguments, and one remedy for all of it."""
    if not adam:
        return (
            f"max_grad_norm is {norm}, by which Trainer clips the mean: what it cuts had waited in the residuals and "
            f"is lost. Set max_grad_norm=0 in the TrainingArguments, and give compress clip_norm={norm}; "
            "docs/loops.md, 'Clipping'."
        )
    clips = f", and max_grad_norm={norm} clips the mean, whose entries had waited" if norm > 0 else ""
    return (
        "the Trainer's AdamW has momentum (adam_beta1), which delays what error feedback has delayed already: 0.31 "
        f"nats a byte in our study{clips}. Set optim='sgd', max_grad_norm=0 in the TrainingArguments and write "
        "compress(trainer, 1 / 256, scope='layer', clip_norm=1.0, wire='rice+2bit', "
        "precondition=gaussiank.AdamRows()): AdamW's step, level with dense there. Tune the learning rate again; "
        "docs/frameworks.md. Filter gaussiank.AdamWarning to be told no more."
    )


class CompressionCallback(TrainerCallback):  # type: ignore[misc]  # untyped where transformers is not installed
    """What ``compress`` adds to a trainer.

    Attributes:
        compression: of the model that is trained; None before ``on_train_begin``.
    """

    def __init__(
        self, trainer: Trainer, density: tuple[Any, ...], settings: dict[str, Any], *, told: bool = False
    ) -> None:
        self.compression: Compression | None = None
        self._told = told
        self._trainer, self._density, self._settings = trainer, density, settings
        self._model: Any = None
        self._resume: str | bool | None = None
        # no callback learns from where a run resumes, and what it adds to the logs in on_log reaches no history
        self._train, self._log = trainer.train, trainer.log
        trainer.train, trainer.log = self.train, self.log

    def __repr__(self) -> str:
        return f"CompressionCallback({self.compression or self._settings})"

    def train(self, resume_from_checkpoint: str | bool | None = None, *given: Any, **named: Any) -> Any:
        """Train, and remember from where."""
        self._resume = resume_from_checkpoint
        return self._train(resume_from_checkpoint, *given, **named)

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
        """Log, and with the loss what the last step has sent."""
        if self.compression is not None and "loss" in logs:
            logs.update({f"gaussiank/{name}": value for name, value in self.compression.metrics.as_dict().items()})
        self._log(logs, *given, **named)

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Compress the model, which is wrapped by now, and load its residuals where the run resumes."""
        model = self._trainer.model_wrapped
        if model is not self._model:
            settings = {"scaler": self._trainer.accelerator.scaler, "total_steps": state.max_steps, **self._settings}
            self.compression, self._model = compress_model(model, *self._density, **settings), model
            if self._told:
                told_of_adam(self.compression)
        checkpoint = get_last_checkpoint(args.output_dir) if self._resume is True else self._resume
        if checkpoint:
            assert self.compression is not None
            load_beside(self.compression, Path(checkpoint) / FOLDER, checkpoint)

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Save residuals into the checkpoint that the trainer has just written."""
        if self.compression is not None and not args.save_only_model:
            self.compression.save(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", FOLDER))

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Log what the run has sent."""
        if self.compression is not None and state.is_world_process_zero:
            _LOG.info("%s", self.compression.summary())
