"""The settings of a training run, checked before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gaussiank.autotune import parse_policy
from gaussiank.codec import chosen_wire
from gaussiank.collectives import require_feedback
from gaussiank.compressors import Compressor, parse_compressor
from gaussiank.momentum import MomentumCorrection
from gaussiank.reducer import Scope, require_scope
from gaussiank.schedule import Constant, DenseStart, Schedule, Warmup, require_density
from gaussiank_lab.commands import require_numbers
from gaussiank_lab.data import DATASETS, Data, Wanted
from gaussiank_lab.learning_rate import LRSchedule
from gaussiank_lab.models import ModelSpec, find_model
from gaussiank_lab.precision import PrecisionName

WarmupName = Literal["none", "dense", "dgc", "published"]
OptimizerName = Literal["sgd", "adamw"]

# a year; numpy's largest seed; and a seed and a step together fit the 64 bits of torch's
_AT_MOST = {"timeout_s": 365 * 86_400, "seed": 2**32 - 1, "steps": 2**31 - 1, "epochs": 2**31 - 1}
_ABOVE_ZERO = {
    "lr": "0.02 suits LeNet-5.",
    "clip_grad": "Leave it out to clip nothing.",
    "clip_mean": "Leave it out to clip nothing.",
    "timeout_s": "120 waits for two minutes.",
}


@dataclass(frozen=True)
class TrainConfig:
    """Say what to train, how, and with which methods.

    Args:
        model: key of ``MODELS``, or ``torchvision:NAME``.
        dataset: key of ``DATASETS``.
        data_dir: the user's folder of data sets, or None.
        context: tokens that a language model sees at once.
        augment: shift and mirror training images at random.
        methods: compressors to compare, ``name`` or ``name:field=value``.
        density: share of entries to send.
        workers: number of workers.
        batch_size: examples a worker and step.
        epochs: passes over the data; ignored when ``steps`` is given.
        steps: optimizer steps, or None.
        eval_steps: steps between evaluations; None evaluates after each epoch.
        optimizer: ``sgd`` or ``adamw``.
        lr: learning rate, its highest.
        lr_schedule: ``constant``, ``step`` or ``cosine``; see ``learning_rate``.
        lr_warmup_steps: steps over which the learning rate rises.
        momentum: of SGD, or of the momentum correction when that is on; Adam's first beta.
        weight_decay: of the optimizer.
        clip_grad: largest norm of a worker's whole gradient, before the exchange; None clips nothing.
        clip_mean: largest norm of the mean gradient, after the exchange; None clips nothing.
        precision: ``fp32``, or ``bf16`` or ``fp16`` under autocast, float16 with a ``GradScaler``.
        accumulate: batches a worker and step; their mean gradient is exchanged once.
        ema: decay of a moving average of the weights, which is evaluated beside them; None keeps none.
        warmup: how the density starts: ``none``, ``dense`` (everything), ``dgc`` or ``published`` (ladders).
        warmup_steps: length of the warm-up in steps, all its stages together; None takes one epoch a stage.
        momentum_correction: accumulate velocity instead of gradient (DGC), in methods with feedback.
        clip_norm: local clipping of the momentum correction, or None.
        scope: where k is counted: bucket, layer or model.
        max_bytes: most bytes of a message from one worker to another, or None.
        collective: how workers agree on the mean, ``name`` or ``name:field=value``.
        wire: how entries travel, ``index+values``; None takes the default of the device.
        seed: of initialisation and data order, the same for every method.
        device: ``cpu`` or ``cuda``.
        timeout_s: seconds after which a worker that does not answer ends the run.

    Raises:
        ValueError: a setting out of its range, or two that exclude each other.
    """

    model: str = "lenet5"
    dataset: str = "fashion-mnist-subset"
    data_dir: str | None = None
    context: int = 128
    augment: bool = False
    methods: tuple[str, ...] = ("dense", "topk", "gaussiank", "randomk:feedback=false")
    density: float = 0.001
    workers: int = 4
    batch_size: int = 32
    epochs: int = 12
    steps: int | None = None
    eval_steps: int | None = None
    optimizer: OptimizerName = "sgd"
    lr: float = 0.02
    lr_schedule: LRSchedule = "constant"
    lr_warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_grad: float | None = None
    clip_mean: float | None = None
    precision: PrecisionName = "fp32"
    accumulate: int = 1
    ema: float | None = None
    warmup: WarmupName = "none"
    warmup_steps: int | None = None
    momentum_correction: bool = False
    clip_norm: float | None = None
    scope: Scope = "bucket"
    max_bytes: int | None = None
    collective: str = "allgather"
    wire: str | None = None
    seed: int = 0
    device: str = "cpu"
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        spec = find_model(self.model)
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}. Correct it.")
        if DATASETS[self.dataset].task != spec.task:
            fitting = ", ".join(name for name, source in DATASETS.items() if source.task == spec.task)
            raise ValueError(f"dataset must be of {spec.task} for {self.model}, got {self.dataset!r}. Take {fitting}.")
        if self.augment and spec.task != "images":
            raise ValueError(f"augment must be off for a model of {spec.task}, got on for {self.model}. Leave it out.")
        if not self.methods:
            raise ValueError("methods must name at least one, got none. Give dense,topk, for example.")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must differ, got {', '.join(self.methods)}. Name each once.")
        for method in self.methods:
            self._require_feedback(method)
        require_density(self.density)
        require_scope(self.scope)
        choices = {
            "warmup": WarmupName,
            "optimizer": OptimizerName,
            "lr_schedule": LRSchedule,
            "precision": PrecisionName,
        }
        for argument, known in choices.items():
            value, names = getattr(self, argument), get_args(known)
            if value not in names:
                raise ValueError(f"{argument} must be one of {', '.join(names)}, got {value!r}. Choose one of them.")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}. Choose one of them.")
        self._check_numbers()

    def _require_feedback(self, method: str) -> None:
        collective, compressor = parse_policy(self.collective), parse_compressor(method)
        try:
            require_feedback(collective, compressor)
        except ValueError as error:
            raise ValueError(f"{error} Or leave {method} out of --methods.") from None

    def _check_numbers(self) -> None:
        require_numbers(vars(self))
        for argument, largest in _AT_MOST.items():
            value = getattr(self, argument)
            if value is not None and abs(value) > largest:
                raise ValueError(f"{argument} must be at most {largest:,}, got {value:,}. Lower it.")
        least = {"workers": 1, "batch_size": 1, "epochs": 1, "steps": 1, "warmup_steps": 1, "context": 1}
        for argument, smallest in {**least, "accumulate": 1, "eval_steps": 1, "lr_warmup_steps": 0}.items():
            value = getattr(self, argument)
            if value is not None and value < smallest:
                raise ValueError(f"{argument} must be at least {smallest}, got {value}. Raise it.")
        for argument in ("lr", "clip_grad", "clip_mean", "timeout_s"):
            value = getattr(self, argument)
            if value is not None and not value > 0:
                raise ValueError(f"{argument} must be above 0, got {value}. {_ABOVE_ZERO[argument]}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}. 0 switches it off.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be in (0, 1), got {self.ema}. 0.999 is usual; leave it out to keep no average.")
        self._check_momentum()

    def _check_momentum(self) -> None:
        MomentumCorrection(self.momentum, clip_norm=self.clip_norm)  # checks both
        if self.momentum_correction and self.optimizer != "sgd":
            raise ValueError(
                f"optimizer must be sgd with momentum_correction, got {self.optimizer}. Leave one of them out."
            )
        if self.clip_norm is not None and not self.momentum_correction:
            raise ValueError(
                f"clip_norm must come with momentum_correction, got {self.clip_norm} alone. Add --momentum-correction."
            )
        wire = chosen_wire(self.wire, ())
        if self.max_bytes is not None:
            wire.entries_within(self.max_bytes, numel=1)

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return find_model(self.model)

    def load_data(self) -> Data:
        """Load the data set, fitted to the model.

        Raises:
            FileNotFoundError: it is not there; says how to get it.
            ValueError: a file is damaged; names it.
        """
        place = None if self.data_dir is None else Path(self.data_dir)
        if place is not None and not place.exists():
            raise FileNotFoundError(f"data_dir must exist, got {place}. Give a folder of data sets.")
        return DATASETS[self.dataset].load(Wanted(place, self.spec.image, self.context))

    def epoch_steps(self, batches: int) -> int:
        """Return the optimizer steps in an epoch of as many batches; those that fill no step are left out.

        Raises:
            ValueError: they do not fill one.
        """
        if self.accumulate > batches:
            raise ValueError(
                f"accumulate must be in [1, {batches}] where an epoch has {batches} batches, got {self.accumulate}. "
                "Lower it."
            )
        return batches // self.accumulate

    def total_steps(self, epoch_steps: int) -> int:
        """Return the optimizer steps of the whole training."""
        return self.steps or self.epochs * epoch_steps

    def schedule(self, epoch_steps: int) -> Schedule:
        """Return the density over steps; a warm-up stage lasts ``epoch_steps`` unless ``warmup_steps`` is set."""
        if self.warmup == "none":
            return Constant(self.density)
        if self.warmup == "dense":
            return DenseStart(self.density, self.warmup_steps or epoch_steps)
        ladder = Warmup.dgc if self.warmup == "dgc" else Warmup.published
        stages = len(ladder(self.density, 1).densities) - 1
        if self.warmup_steps is None:
            return ladder(self.density, epoch_steps)
        return ladder(self.density, max(1, self.warmup_steps // max(1, stages)))

    def correction(self, compressor: Compressor) -> MomentumCorrection | None:
        """Return the momentum correction for a compressor, or None where the optimizer's own momentum is right.

        It corrects for delay: a dense method has none, and one without feedback sends nothing late.
        """
        if not self.momentum_correction or compressor.sends_all or not compressor.keeps_rest:
            return None
        return MomentumCorrection(self.momentum, clip_norm=self.clip_norm)

    def as_record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "methods": list(self.methods)}
