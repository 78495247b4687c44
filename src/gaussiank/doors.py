"""``compress``: checks what it is told, and leads the model to the door of its wrapper."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from gaussiank.autotune import Policy, parse_policy
from gaussiank.codec import Wire, chosen_wire
from gaussiank.collectives import entries_within
from gaussiank.comm import require_backend
from gaussiank.compression import Compression
from gaussiank.compressors import Capped, Compressor, parse_compressor
from gaussiank.ddp import DDPDoor, is_sharded
from gaussiank.feedback import check_optimizers
from gaussiank.metrics import Observer
from gaussiank.momentum import LocalClip, MomentumCorrection
from gaussiank.ops import prepare
from gaussiank.reducer import AdamRows, OnNonfinite, Scope, Settings, require_scope
from gaussiank.schedule import Constant, Schedule, require_density

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from gaussiank.fsdp import FSDPDoor

_LOG = logging.getLogger(__name__)
_SAMPLED_STEPS = 1000  # of a schedule, at most, that are looked at to add it up


def compress(
    model: nn.Module,
    density: float | Schedule = 0.001,
    *,
    mesh: DeviceMesh | None = None,
    compressor: str | Compressor = "topk",
    scope: Scope = "bucket",
    momentum: MomentumCorrection | None = None,
    precondition: AdamRows | None = None,
    residual_dtype: torch.dtype | None = None,
    clip_norm: float | None = None,
    max_bytes: int | None = None,
    on_nonfinite: OnNonfinite = "propagate",
    scaler: torch.amp.GradScaler | None = None,
    collective: str | Policy = "allgather",
    wire: str | Wire | None = None,
    timeout_s: float | None = None,
    total_steps: int | None = None,
    recorder: Observer | None = None,
) -> Compression:
    """Make a DDP or FSDP2 model exchange sparse gradients with error feedback instead of dense ones.

    Call it once, on every worker, after wrapping the model and before the first backward; the training loop stays as it
    is. With DDP, communication overlaps with backward, bucket by bucket.

    Args:
        model: model wrapped in ``DistributedDataParallel``, on Gloo or NCCL, without another communication hook; it may
            be wrapped in ``torch.compile`` already. Or one of ``fully_shard(..., mesh=mesh["shard"])``: gradients are
            dense within its shard group, and sparse between replicas.
        density: share of entries to send, in (0, 1], or a schedule of it; a larger one sends more and delays less.
        mesh: for a model of ``fully_shard`` alone: the ``DeviceMesh`` of all workers, with two dimensions, replicas and
            then shards, by whatever names.
        compressor: which entries: a name, ``name:field=value``, or a compressor. The default is exact Top_k.
        scope: where k is counted: on each ``bucket`` (of DDP, or FSDP module), on each parameter (``layer``), or on the
            whole ``model`` (the paper's setting; waits for the end of backward).
        momentum: DGC's momentum correction and local clipping; set the optimizer's momentum to 0 with it.
        precondition: ``AdamRows()`` divides gradients as AdamW does, before the selection; step with ``SGD(lr,
            weight_decay)`` without momentum. Each backward that exchanges must be followed by the optimizer's step.
        residual_dtype: ``torch.bfloat16`` halves what residuals take, from 8 to 4 bytes a parameter: each is rounded up
            or down at random in every step, so that nothing is lost on average, where float32, the default, loses
            nothing at all. The hook takes longer: it is no longer one pass over memory.
        clip_norm: largest norm of this worker's own gradient, before anything is selected: of the whole one with
            ``scope="model"``; otherwise each bucket or parameter gets its share of the square, by its number of
            parameters. With a ``scaler``, of the unscaled gradient. What is clipped is not kept. Use it in place of
            ``clip_grad_norm_``, which after backward clips the mean and throws away what residuals have given to it.
        max_bytes: most bytes of a message from one worker to another with a sparse gradient, all of it; what is cut
            stays in the residual. Refused where the collective sends more whatever is cut, as ``auto`` does.
        on_nonfinite: an infinite or NaN gradient is passed on to every worker's gradients and changes no residual
            (``propagate``, what a ``GradScaler`` needs), or ends backward on every worker with the parameter's name
            (``raise``).
        scaler: the ``GradScaler`` of a float16 run: residuals are rescaled when its scale changes. Without it, a
            residual keeps the unit of the scale that it was computed with.
        collective: how workers agree on the mean: a name, ``name:field=value``, or a collective. ``allgather`` sends
            every selection to everyone; with many workers ``split`` sends less. ``auto`` follows the
            link, and sends whole gradients while that is faster.
        wire: how entries travel: ``index+values`` or a ``codec.Wire``. The default is ``rice+bf16-rice`` on a CPU,
            14.4 bits an entry of a payload at density 0.001 of models of 6 to 8 million parameters, and ``chunks+bf16``
            elsewhere, 32 bits and no wait for the device; there ``chunks12+2bit`` takes 14.5 at density 1/64.
            What rounding takes off stays in the residual; ``raw+fp32`` rounds nothing. ``randomk:shared=true`` sends
            no indices with ``allgather`` and ``leader``, whatever the index code.
        timeout_s: seconds after which an exchange fails that a worker did not answer, above 0; larger than any pause
            that one worker takes alone between two backwards, for an evaluation or a checkpoint. The default is the
            process group's own, for which DDP itself waits (in the first two steps whatever is set here). On an
            accelerator no other is taken: messages go over that group.
        total_steps: optimizer steps that the run will take, if that is known: a warning is given where the density is
            so small that an entry waits longer, on average, than the run lasts.
        recorder: an ``Observer`` of gradients, residuals and selections, ``gaussiank_lab.Recorder`` for example.
            It changes nothing.

    Returns:
        The compression: ``metrics`` of the last step, ``state_dict`` and ``load_state_dict`` for checkpoints.

    Raises:
        ValueError: an argument out of its range, a parameter of a dtype without a residual, a model that another tool
            reduces or that is too large, or workers that are configured differently.
        RuntimeError: the model has a communication hook already.

    An optimizer with momentum beside a ``MomentumCorrection`` is refused when it takes its first step, one with
    ``betas[0]`` above 0 beside feedback gets an ``AdamWarning``, two steps without a call of the hook a warning, and a
    ``GradScaler`` that steps a fused optimizer but is not given is warned of (other optimizers are not told of theirs).

    Source: Shi et al. 2019, "Understanding Top-k Sparsification in Distributed Deep Learning", equation 2 (TopK-SGD
    with error compensation). Differs: k is counted on each bucket by default, on the whole model in the paper.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> store = f"file://{tempfile.mkdtemp()}/store"
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(100, 10))
        >>> compression = compress(model, density=0.01)
        >>> model(torch.ones(1, 100)).sum().backward()
        >>> compression.metrics.kept, compression.metrics.numel
        (10, 1010)
        >>> dist.destroy_process_group()
    """
    door = _door_of(model, mesh)
    require_scope(scope)
    if isinstance(compressor, str):
        compressor = parse_compressor(compressor)
    require_backend(door.group, {one.device for one in door.gradients}, timeout_s)
    door.require_reducible(scope, sends_all=compressor.sends_all)
    wire = chosen_wire(wire, door.gradients)
    collective = parse_policy(collective) if isinstance(collective, str) else collective
    if max_bytes is not None:
        workers = dist.get_world_size(door.group)
        limit = entries_within(max_bytes, collective, wire, door.gradients, workers, layers=scope == "layer")
        compressor = Capped(compressor, limit)
    clip = None if clip_norm is None else LocalClip(clip_norm, max(1, door.trained), per_layer=scope == "layer")
    if isinstance(precondition, AdamRows):
        precondition = replace(precondition, outputs={**door.outputs(), **precondition.outputs})
    settings = Settings(
        density if callable(density) else Constant(require_density(density)),
        compressor,
        scope=scope,
        momentum=momentum,
        clip=clip,
        on_nonfinite=on_nonfinite,
        collective=collective,
        wire=wire,
        timeout_s=timeout_s,
        precondition=precondition,
        residual_dtype=residual_dtype,
    )
    rank = dist.get_rank(door.group)
    if total_steps is not None and not compressor.sends_all:
        _tell_of_waiting(settings.schedule, total_steps, rank)
    if not compressor.sends_all:
        prepare({one.device for one in door.gradients})
    compression = door.register(settings, scaler, recorder)
    _LOG.info("%r", compression)
    has_residual = compressor.keeps_rest and not compressor.sends_all
    exchanges = door.exchange_check()
    check_optimizers(
        compression,
        door.parameters,
        momentum,
        scaler,
        has_residual=has_residual,
        preconditioned=precondition is not None,
        exchanges=exchanges,
        rank=rank,
    )
    return compression


def _tell_of_waiting(schedule: Schedule, total_steps: int, rank: int) -> None:
    """Warn where all densities of a run together do not send every entry once."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps!r}. Give the optimizer steps of the run.")
    sampled = min(total_steps, _SAMPLED_STEPS)
    sent = sum(schedule(step * total_steps // sampled) for step in range(sampled)) / sampled * total_steps
    if sent < 1 and rank == 0:
        warnings.warn(
            f"density is so small that an entry waits longer than the run lasts: all {total_steps:,} steps send "
            f"{sent:.2g} of the gradient's entries. Raise it: at {1 / total_steps:.2g} an entry goes out about once.",
            stacklevel=3,
        )


def _door_of(model: nn.Module, mesh: DeviceMesh | None) -> DDPDoor | FSDPDoor:
    if isinstance(model, nn.Module) and is_sharded(model):
        from gaussiank.fsdp import FSDPDoor  # what it imports would take users of DDP longer than compress itself

        return FSDPDoor(model, mesh)
    if mesh is not None:
        raise ValueError(
            "mesh must be None for a model that fully_shard has not sharded, got one. Leave it out, or shard the model."
        )
    return DDPDoor(model)
