"""The settings of a training run, from the command line, a recipe or a file, checked before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from gaussiank.schedule import Constant, DenseStart, Schedule, Warmup, require_density
from gaussiank_lab.limits import require_numbers
from gaussiank_lab.outputs import write_whole
from gaussiank_lab.train.local import local_method, powersgd_method

if TYPE_CHECKING:  # the command line reads the settings' help from here, and must not wait for torch
    from gaussiank.compressors import Compressor
    from gaussiank.momentum import MomentumCorrection
    from gaussiank.reducer import AdamRows
    from gaussiank_lab.data import Data
    from gaussiank_lab.models import ModelSpec

WarmupName = Literal["none", "dense", "dgc", "published"]
OptimizerName = Literal["sgd", "adamw"]
LRSchedule = Literal["constant", "step", "cosine"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
ScopeName = Literal["bucket", "layer", "model"]

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

    The lines below are also the help of ``gaussiank train``. A recipe's value may differ from the default.

    Args:
        model: model to train: a name of the table, or ``torchvision:NAME`` (lenet5).
        dataset: data set to train on; ``gaussiank data`` lists them.
        data_dir: folder of your own data sets.
        context: tokens that a language model sees at once.
        augment: shift and mirror training images at random.
        methods: compressors to compare, separated by commas; settings follow a colon: ``randomk:feedback=false``;
            ``local`` and ``diloco`` exchange what optimizers did, seldom: ``local:density=0.0625``,
            ``diloco:values=8bit``; ``powersgd`` is torch's own hook.
        density: share of the entries to send, in (0, 1].
        workers: local processes to start (4); under torchrun, torchrun's number is used.
        batch_size: examples per worker and step.
        epochs: passes over the data.
        steps: optimizer steps, instead of epochs.
        eval_steps: steps between evaluations, instead of an epoch; 0 takes a recipe's number away.
        optimizer: optimizer to use: ``sgd`` or ``adamw``.
        lr: peak learning rate.
        lr_schedule: course of the learning rate: ``constant``, ``step`` or ``cosine``.
        lr_warmup_steps: steps over which the learning rate rises to its peak.
        momentum: momentum of SGD or of the momentum correction; Adam's first beta.
        weight_decay: weight decay of the optimizer.
        clip_grad: largest norm of a worker's own gradient, before the exchange; 0 for none.
        clip_mean: largest norm of the mean gradient, after the exchange.
        precision: precision of the model: ``fp32``, or autocast to ``bf16`` or, with a GradScaler, ``fp16``.
        accumulate: batches whose gradients are accumulated for one exchange (1).
        ema: decay of an exponential moving average (EMA); the averaged weights are evaluated as well.
        warmup: start of the density: ``none``, ``dense``, or the ladders ``dgc`` and ``published``.
        warmup_steps: length of the density's warm-up in steps; by default one epoch a stage.
        momentum_correction: accumulate velocity instead of gradients (DGC), in methods with error feedback.
        precondition: divide gradients by the root mean squares of their rows (``AdamRows``) before the selection, and
            step with SGD without momentum, in methods with error feedback.
        clip_norm: norm to which the momentum correction clips a worker's gradient.
        sync_every: steps between two exchanges of the methods local and diloco (10).
        scope: where k is counted: ``bucket``, ``layer`` or ``model``.
        max_bytes: most bytes of a message from one worker to another.
        collective: how workers agree on the mean: allgather, split, leader, tree, hierarchical, auto or dense; fields
            follow a colon: ``name:field=value``.
        wire: how entries are encoded, ``index+values`` (rice+bf16-rice; raw+fp32 is lossless, chunks12+2bit
            fits accelerators).
        seed: seed of the initialisation and of the data order, the same for every method.
        device: device to train on: ``cpu`` or ``cuda``.
        timeout_s: seconds after which a worker that does not answer ends the run (120).

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
    precondition: bool = False
    clip_norm: float | None = None
    sync_every: int | None = None
    scope: ScopeName = "bucket"
    max_bytes: int | None = None
    collective: str = "allgather"
    wire: str | None = None
    seed: int = 0
    device: str = "cpu"
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        from gaussiank.reducer import require_scope
        from gaussiank_lab.data import DATASETS

        spec = self.spec
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
            self._require_method(method)
        self._check_local()
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

    def _check_local(self) -> None:
        seldom = [method for method in self.methods if local_method(method)]
        if self.sync_every is not None and not seldom:
            raise ValueError(
                f"methods must have local or diloco with sync_every, got {', '.join(self.methods)}. "
                "Give --methods dense,local, for example."
            )
        for argument in ("ema", "max_bytes", "clip_norm"):
            if seldom and (value := getattr(self, argument)) is not None:
                raise ValueError(
                    f"{argument} must be left out with {seldom[0]}, got {value}. Compare it in another run."
                )

    def _require_method(self, method: str) -> None:
        from gaussiank.autotune import parse_policy
        from gaussiank.collectives import require_feedback
        from gaussiank.compressors import parse_compressor

        if powersgd_method(method) is not None:
            if self.precision == "fp16":
                raise ValueError(
                    f"precision must be fp32 or bf16 with {method}, got fp16. What the hook of torch keeps does not "
                    "follow a GradScaler."
                )
            return
        local = local_method(method)
        collective = parse_policy(self.collective)
        compressor = parse_compressor(local.settings()["compressor"] if local else method)
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
        least = {
            "workers": 1,
            "batch_size": 1,
            "epochs": 1,
            "steps": 1,
            "warmup_steps": 1,
            "context": 1,
            "sync_every": 1,
        }
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
        from gaussiank.codec import chosen_wire
        from gaussiank.momentum import MomentumCorrection

        MomentumCorrection(self.momentum, clip_norm=self.clip_norm)  # checks both
        if self.momentum_correction and self.optimizer != "sgd":
            raise ValueError(
                f"optimizer must be sgd with momentum_correction, got {self.optimizer}. Leave one of them out."
            )
        if self.precondition and self.momentum_correction:
            raise ValueError("momentum_correction must be off with precondition, got both on. Leave one of them out.")
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
        from gaussiank_lab.models import find_model

        return find_model(self.model)

    def load_data(self) -> Data:
        """Load the data set, fitted to the model.

        Raises:
            FileNotFoundError: it is not there; says how to get it.
            ValueError: a file is damaged; names it.
        """
        from gaussiank_lab.data import DATASETS, Wanted

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
        from gaussiank.momentum import MomentumCorrection

        if not self.momentum_correction or compressor.sends_all or not compressor.keeps_rest:
            return None
        return MomentumCorrection(self.momentum, clip_norm=self.clip_norm)

    def preconditioner(self, compressor: Compressor) -> AdamRows | None:
        """Return what a compressor's gradients are divided by, or None where the optimizer steps as it is set."""
        from gaussiank.reducer import AdamRows

        return AdamRows() if self.precondition and compressor.keeps_rest and not compressor.sends_all else None

    def as_record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "methods": list(self.methods)}


@dataclass(frozen=True)
class Options:
    """Say where a training starts from, what it writes and how it survives: what is no setting of the training.

    Args:
        recipe: settings to start from: ``default`` or ``paper``.
        config: start from the settings of an earlier run instead of a recipe: its config.json or its directory.
        out: directory of the run; by default a new one below runs/.
        resume: checkpoint, folder of checkpoints, or run to resume, with its settings.
        checkpoint_every: steps between checkpoints; without it, none are written.
        checkpoint_dir: directory of the checkpoints; by default checkpoints/ in the run's directory.
        keep: number of checkpoints to keep, the latest (3).
        checkpoint_form: form of the checkpoints: ``plain`` (torch.save) or ``dcp`` (torch.distributed.checkpoint).
        max_restarts: how often failed workers are restarted (0).
        record: record the gradients of each method every so many steps, for analyze.
        record_vectors: also keep at most so many whole vectors of --record, for replay.
        track: also send the records to these, separated by commas: tensorboard, wandb or wandb:PROJECT.
    """

    recipe: str | None = None
    config: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    checkpoint_every: int | None = None
    checkpoint_dir: Path | None = None
    keep: int | None = None
    checkpoint_form: str | None = None
    max_restarts: int = 0
    record: int | None = None
    record_vectors: int | None = None
    track: str | None = None


def learning_rate(lr: float, schedule: LRSchedule, step: int, steps: int, warmup_steps: int = 0) -> float:
    """Return the learning rate of a step; it depends on nothing else, so a run can go on anywhere.

    Args:
        lr: the highest.
        schedule: ``constant``; ``step``, a tenth after half of the steps and a hundredth after three quarters;
            ``cosine``, falling to 0 along half a wave.
        step: from 1.
        steps: of the whole training.
        warmup_steps: over which it rises to ``lr`` in a line, before anything else.

    Source: He et al. 2016, section 4.2 (``step``); Loshchilov and Hutter 2017 (``cosine``).

    Example:
        >>> [round(learning_rate(1.0, "step", step, 8), 2) for step in (1, 4, 5, 7)]
        [1.0, 1.0, 0.1, 0.01]
        >>> [learning_rate(1.0, "constant", step, 8, warmup_steps=4) for step in (1, 4, 8)]
        [0.25, 1.0, 1.0]
    """
    if step <= warmup_steps:
        return lr * step / warmup_steps
    done = (step - 1) / steps
    if schedule == "step":
        return lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * (step - 1 - warmup_steps) / max(1, steps - warmup_steps))) / 2
    return lr


CONFIG_NAME = "config.json"


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Write every setting of a run to ``RUN/config.json``."""
    text = json.dumps(config.as_record(), indent=2) + "\n"
    write_whole(run_dir / CONFIG_NAME, text.encode())


def read_config(path: Path) -> dict[str, Any]:
    """Read settings that a run has written, or a part of them that was written by hand.

    Args:
        path: JSON file, or the directory of a run.

    Returns:
        Values for ``TrainConfig``, of the right types; what they say is checked there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or a field is unknown or of another type; names it.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"config must be a file, got {file}, which does not exist. Correct it.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"config must be a JSON file, got {file} ({error}). Correct it.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"config must hold a JSON object, got {type(fields).__name__} in {file}. Correct it.")
    return checked_fields(fields, str(file))


def checked_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return ``fields`` with a tuple of methods, or name the first that is unknown or of another type."""
    kinds = get_type_hints(TrainConfig)
    for name, value in fields.items():
        if name not in kinds:
            raise ValueError(f"fields of {where} must be among {', '.join(kinds)}, got {name!r}. Correct or remove it.")
        if not _is_a(value, kinds[name]):
            kind = "list of texts" if name == "methods" else _kind_name(kinds[name])
            raise ValueError(f"{name} of {where} must be a {kind}, got {value!r}. Correct it.")
    return {name: _plain(value, kinds[name]) for name, value in fields.items()}


def _plain(value: Any, kind: Any) -> Any:
    """Undo what JSON does to types: tuples become lists, and 1.0 may be written as 1."""
    if isinstance(value, list):
        return tuple(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in (kind, *get_args(kind)) else value


def _is_a(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in get_args(kind))
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if origin is Literal:
        return isinstance(value, str)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _kind_name(kind: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return " or ".join("text" if get_origin(part) is Literal else names[part] for part in parts)


Fields = dict[str, Any]
Recipe = Callable[[str], Fields]

_DATASET = {"images": "fashion-mnist-subset", "language": "stdlib", "speech": "synthetic-speech"}
_IMAGENET = {"dataset": "synthetic-images", "batch_size": 8, "steps": 10, "lr": 0.01}

_TEXT = {"batch_size": 4, "steps": 600, "eval_steps": 200}
_ADAMW = {"optimizer": "adamw", "lr": 0.003, "lr_schedule": "cosine", "lr_warmup_steps": 50, "clip_grad": 0.5}

# What was tried for ResNet-20 and the two small language models stands in results/training.md.
_OURS: dict[str, Fields] = {
    "resnet20": {"lr": 0.1},
    "transformer": {**_TEXT, **_ADAMW, "density": 1 / 64, "precondition": True, "scope": "layer"},
    "lstm-small": {**_TEXT, "lr": 4.0, "clip_grad": 0.25},
    "lstm-ptb": {"batch_size": 4, "context": 35, "steps": 10, "lr": 4.0, "clip_grad": 0.25},
    "lstm-an4": {"batch_size": 4, "steps": 20, "lr": 0.0002, "clip_grad": 400.0},
}
_PAPER: dict[str, Fields] = {
    "fnn3": {"dataset": "mnist", "batch_size": 128, "lr": 0.01},
    "lenet5": {"dataset": "mnist", "batch_size": 128, "lr": 0.01},
    "resnet20": {"dataset": "cifar10", "batch_size": 32, "lr": 0.1},
    "vgg16": {"dataset": "cifar10", "batch_size": 128, "lr": 0.1},
    "lstm-ptb": {"dataset": "ptb", "batch_size": 20, "lr": 22.0, "clip_grad": 0.25, "context": 35},
    "lstm-an4": {"dataset": "an4", "batch_size": 4, "lr": 0.0002, "clip_grad": 400.0},
    "imagenet": {"dataset": "imagefolder", "batch_size": 128, "lr": 0.01},
}


def default(model: str) -> Fields:
    """Return our settings for a model: data that every machine has, and a training that two cores finish."""
    spec = _spec_of(model)
    general = _IMAGENET if spec.outputs == 1000 else {}
    return {"model": model, "dataset": _DATASET[spec.task], **general, **_OURS.get(model, {})}


def paper(model: str) -> Fields:
    """Return the paper's settings for a model: its data, batch per worker, learning rate and clipping.

    Density 0.001, momentum 0.9 and selection over the whole model are the same for all. What the paper leaves open
    (epochs, learning rate over steps, augmentation) stays ours.

    Raises:
        ValueError: the paper does not train this model.

    Source: Shi et al. 2019, section 4, table 1. Differs: the norm is clipped on each worker before the exchange.
    """
    spec = _spec_of(model)
    name = "imagenet" if spec.outputs == 1000 else model
    if name not in _PAPER:
        raise ValueError(f"recipe must be default for {model}, got paper, which does not train it. Leave it out.")
    return {"model": model, "density": 0.001, "momentum": 0.9, "scope": "model", **_PAPER[name]}


def _spec_of(model: str) -> ModelSpec:
    from gaussiank_lab.models import find_model

    return find_model(model)


OFF_BY_ZERO = ("eval_steps", "clip_grad", "clip_norm", "warmup_steps", "max_bytes")
"""Settings that a recipe or file may hold and the command line must be able to take away: 0 does."""

RECIPES: dict[str, Recipe] = {"default": default, "paper": paper}
"""Name -> function that gives the settings for a model."""


def resolve(recipe: str | None, file: Mapping[str, Any] | None, given: Mapping[str, Any]) -> Fields:
    """Put a run's settings together: of a recipe or a file, then what was given, which wins.

    Number of epochs given alone takes the place of a recipe's or file's number of steps. A 0 given for one of
    ``OFF_BY_ZERO`` takes it away.

    Args:
        recipe: key of ``RECIPES``; None takes ``default`` where no file is given.
        file: settings read from a file, or None.
        given: settings given one by one.

    Raises:
        ValueError: there is no such recipe, it does not know the model, or a file is given as well.

    Example:
        >>> resolve("paper", None, {"model": "resnet20", "lr": 0.05})["lr"]
        0.05
    """
    if recipe is not None and file is not None:
        raise ValueError(f"recipe must be left out with config, got {recipe!r}. Leave one of them out.")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}. Choose one of them.")
    base = RECIPES[recipe or "default"](given.get("model", "lenet5")) if file is None else dict(file)
    if "epochs" in given and "steps" not in given:
        base["steps"] = None
    off = {name: None for name in OFF_BY_ZERO if given.get(name) == 0}
    return {**base, **given, **off}
