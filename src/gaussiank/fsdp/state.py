"""The compression of an FSDP2 model, from the door to the hooks that lead each reduced shard onto its reducer."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from gaussiank.comm import Done, together
from gaussiank.compression import Compression
from gaussiank.feedback import OptimizerUse
from gaussiank.layout import Layout
from gaussiank.metrics import Observer
from gaussiank.momentum import LocalClip
from gaussiank.reducer import GradientReducer, Scope, Settings, output_dimensions

from .acceptance import require_mesh, require_reducible, sharded_modules
from .dtensors import dtensors, state_of
from .shard import ModuleShard, Plan, ShardedParameter, require_known_order


@dataclass(frozen=True)
class Hook:
    """What an FSDP module calls with its reduced shard, which is the mean over replicas when it returns."""

    compression: FSDPCompression
    shard: ModuleShard

    @torch.no_grad()
    def __call__(self, vector: Tensor) -> None:
        """Reduce one vector, in place."""
        self.compression.reduce(self.shard, vector)


class FSDPCompression(Compression):
    """The compression of a model of ``fully_shard``.

    Its residuals are this rank's: of its own shard, in its own replica.
    """

    def __init__(
        self,
        model: nn.Module,
        shards: Sequence[ModuleShard],
        mesh: DeviceMesh,
        settings: Settings,
        *,
        scaler: torch.amp.GradScaler | None = None,
        observer: Observer | None = None,
    ) -> None:
        parameters = {one.name: one for shard in shards for one in shard.parameters}
        numels = {name: one.parameter.numel() for name, one in parameters.items()}
        self._configure(
            settings,
            numels,
            None,
            observer,
            mesh=f"{mesh.size(0)} replicas of {mesh.size(1)} shards",
            modules=[(shard.path, [one.name for one in shard.parameters]) for shard in shards],
        )
        require_known_order(mesh)
        self._replicas, self._shards_group = mesh.get_group(0), mesh.get_group(1)
        self._clip = settings.clip and ShardedClip(settings.clip, self._shards_group)
        self._reducer = GradientReducer(
            {name: tuple(one.local.shape) for name, one in parameters.items()},
            replace(settings, clip=None),  # a shard's norm says little
            group=self._replicas,
            observer=observer,
            use=OptimizerUse({name: one.parameter for name, one in parameters.items()}),
            device=torch.device(mesh.device_type),
        )
        if observer:
            held = {name: one.numel for name, one in parameters.items()}
            observer.attach(self.config, held, self._reducer.feedback, self._replicas)
        self._mesh, self._moving = mesh, settings.momentum is not None
        self._whole_model = settings.scope == "model"
        self._scaler, self._scale = scaler, 1.0
        self._shards = list(shards)
        self._hooks = [Hook(self, shard) for shard in shards]
        assert isinstance(model, FSDPModule)
        self._state = model._get_fsdp_state()
        self._backward, self._unit = -1, 1.0  # torch's number of the one under way; see ModuleShard.unit
        self._waiting: list[_Waiting] = []
        for hook in self._hooks:
            hook.shard.module.set_all_reduce_hook(hook)

    def load(self, folder: str | Path) -> None:
        """Go on where ``save`` was called, on every worker or on none; on the same mesh.

        On another one, load with ``load_dtensors`` what was saved of ``dtensors``.

        Args:
            folder: given to ``save``.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: a file is missing or damaged, or of another model or mesh; the same on all workers, and nothing
                has changed on any.
            RuntimeError: a worker does not call it.
        """
        super().load(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, velocities, hints and step. Each worker must save its own: ``save`` does.

        As for DDP; ``dtensors`` is what another mesh can load.
        """
        return {**super().state_dict(), "mesh": self.config["mesh"]}

    def dtensors(self) -> dict[str, Tensor]:
        """Return residuals, velocities and step for ``torch.distributed.checkpoint``, loadable on any mesh.

        Each is a DTensor of ``[replicas, *parameter]``; call it on every worker, between the same two steps, and add
        it to the dictionary that is saved. Hints are left out: they make the next exchange cheaper, and no different
        with exact selection.

        Example:
            ``dcp.save({"model": model.state_dict(), **compression.dtensors()}, checkpoint_id=folder)``
        """
        return dtensors(self.state_dict(), self._parameters(), self._mesh)

    def load_dtensors(self, checkpoint: str | Path) -> None:
        """Go on where ``dtensors`` was saved, on this mesh or on another: no residual is lost.

        Call it on every worker. Saved by another number of replicas, residuals are shared out by the rule of
        ``gaussiank.reshard``. Nothing in the files is run.

        Args:
            checkpoint: folder that ``torch.distributed.checkpoint`` saved to.

        Raises:
            FileNotFoundError: the folder is no such checkpoint.
            ValueError: it holds no such state, or that of another model, or a file is damaged; the same on all workers.
            RuntimeError: a worker does not call it.
        """
        states: list[dict[str, Any]] = []

        def read() -> int:
            moving = self._moving
            states.append(state_of(checkpoint, self._parameters(), self._mesh, moving=moving))
            states[0]["feedback"]["parameters"] = self._reducer.feedback.state_dict()["parameters"]
            self._require_fitting(states[0])
            return int(states[0]["step"])

        together(read, self._group, what="load_dtensors")
        self._reducer.load_state_dict(states[0])
        self._resumed = True

    def _parameters(self) -> list[ShardedParameter]:
        return [one for shard in self._shards for one in shard.parameters]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a compression of fully_shard must not be copied or pickled, and neither must its model. Save it with "
            "save, dtensors or state_dict."
        )

    # ------------------------------------------------------------------ the vectors of one backward

    def reduce(self, shard: ModuleShard, vector: Tensor) -> None:
        """Make one module's reduced shard the mean over replicas, in place: what follows the hook uses it at once."""
        plan = shard.plan(vector.numel())
        if not shard.exchanges:
            shard.put_off(vector)
            return
        shard.take_up(vector)
        if shard.sums:
            vector.mul_(self._replicas.size())
        self._begin(shard)
        gradient = plan.gradient(vector)
        if self._whole_model and not self._reducer.dense:
            self._waiting.append(_Waiting(shard, plan, gradient.clone()))
            vector.zero_()
            return
        if self._clip:
            self._clip.apply([(plan, gradient)], self._scale)
        self._require_finite(partial(self._exchange, plan.layout, gradient), vector.device)
        plan.write_back(gradient, vector)

    def _exchange(self, layout: Layout, gradient: Tensor) -> None:
        if layout.names:  # else other ranks have all of it
            self._reducer.wait(self._start(layout, gradient))

    def _start(self, layout: Layout, gradient: Tensor) -> Done:
        if (done := self._reducer.repeat(lambda: layout, gradient)) is not None:
            return done
        if self._reducer.dense:
            return self._reducer.reduce_dense(lambda: layout, gradient)
        return self._reducer.reduce_sparse(layout, [gradient])

    def _begin(self, shard: ModuleShard) -> None:
        """Begin a step with the first vector of a backward.

        Which vector is the last depends on the model: the root's may come before others'. So the end of the step is
        told by the end of the backward, after torch's own end of it, in which it reduces what is left.

        Raises:
            RuntimeError: modules hand over gradients in several units.
        """
        unit = shard.unit
        if (backward := torch._C._current_graph_task_id()) == self._backward:
            if unit != self._unit:
                raise RuntimeError(
                    f"all FSDP modules must divide alike, got {shard.path or 'root'!r} whose vector torch divides by "
                    f"{unit:g} after the hook, and {self._unit:g} before it. Give all one reduce_dtype, and call "
                    "set_force_sum_reduction_for_comms and set_gradient_divide_factor on every FSDP module or on none."
                )
            return
        self._require_hooks()
        self._backward, self._unit, self._waiting = backward, unit, []
        self._scale = unit * (self._scaler.get_scale() if self._scaler else 1.0)
        self._reducer.begin(scale=self._scale)
        Variable._execution_engine.queue_callback(self._end)

    @torch.no_grad()
    def _end(self) -> None:
        if self._state._state_ctx.post_backward_final_callback_queued:
            raise RuntimeError(
                "backward must not run inside another one beside a compression, as torch.utils.checkpoint with "
                "use_reentrant=True does: FSDP's end of backward is not seen in it. Set use_reentrant=False; after a "
                "backward that raised, call model.reset_iter_state() first."
            )
        if self._waiting:
            self._reduce_waiting()
        self._reducer.seal()

    def _reduce_waiting(self) -> None:
        """Exchange the whole model at once, and add each module's part to its gradients."""
        waiting, self._waiting = self._waiting, []
        if self._clip:
            self._clip.apply([(one.plan, one.gradient) for one in waiting], self._scale)
        names = tuple(name for one in waiting for name in one.plan.layout.names)
        layout = Layout(names, tuple(numel for one in waiting for numel in one.plan.layout.numels))
        gradients = [one.gradient for one in waiting if one.plan.layout.names]

        def exchange() -> None:
            if gradients:
                self._reducer.wait(self._reducer.reduce_sparse(layout, gradients))

        self._require_finite(exchange, waiting[0].gradient.device)
        for one in waiting:
            one.shard.add_to_grads(one.plan, one.gradient)

    def _require_finite(self, exchange: Callable[[], None], device: torch.device) -> None:
        """Exchange; with ``on_nonfinite="raise"``, what raises on the replicas of one shard raises on those of all.

        Raises:
            RuntimeError: a mean is not finite, here or in another shard, or a worker is gone.
        """
        if not self._reducer.raise_nonfinite:
            exchange()
            return
        error = None
        try:
            exchange()
        except RuntimeError as here:
            error = here
        failed = torch.tensor(error is not None, dtype=torch.int32, device=device)
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=self._shards_group)
        if error is not None:
            raise error
        if bool(failed):
            raise RuntimeError(
                f"gradients must be finite, got infinity or NaN in another shard in step {self.metrics.step}. No "
                "residual was changed; that shard's workers name the parameter."
            )

    def exchanging(self) -> bool:
        """Tell whether the next backward exchanges gradients."""
        return any(hook.shard.exchanges for hook in self._hooks)

    def _require_hooks(self) -> None:
        """Raise where an FSDP module has no hook of this compression.

        Raises:
            RuntimeError: so it is.
        """
        if self._state._is_root is False:
            raise RuntimeError(
                "fully_shard must come before gaussiank.compress, got a call on a module around the compressed one. "
                "Shard the whole model first, then compress its root."
            )
        known: Mapping[int, Hook] = {id(hook.shard._group): hook for hook in self._hooks}
        for state in self._state._state_ctx.all_states:
            for group in state._fsdp_param_groups:
                if group._all_reduce_hook is not known.get(id(group)) or id(group) not in known:
                    raise RuntimeError(
                        f"every FSDP module must have the hook of gaussiank.compress, got {group._module_fqn!r} "
                        "without. Call fully_shard on all modules first, then compress, and set no other hook."
                    )


@dataclass(frozen=True)
class _Waiting:
    """A module's gradient that waits for the others, with ``scope="model"``."""

    shard: ModuleShard
    plan: Plan
    gradient: Tensor


# ---------------------------------------------------------------------- clipping


class ShardedClip:
    """``LocalClip`` where a worker holds a shard alone: one number more is summed over the shard group.

    Args:
        clip: the norm, and what shares it.
        group: the shard group, over which the norm is summed.
    """

    def __init__(self, clip: LocalClip, group: dist.ProcessGroup) -> None:
        self._clip, self._group = clip, group

    def apply(self, parts: Sequence[tuple[Plan, Tensor]], scale: float) -> None:
        """Scale gradients down together to their share of the norm, in place; every rank of the shard group calls it.

        Args:
            parts: plans and gradients of the modules that are exchanged together.
            scale: what they are multiplied by: by a ``GradScaler``, and by torch, which divides later.
        """
        clip = self._clip
        parameters = sum(len(plan.parameters) for plan, _ in parts)
        limit = clip.norm * scale / clip.parameters**0.5 * (1 if clip.per_layer else parameters**0.5)
        # in float64: squares of float32 overflow from 2e19 on
        pieces = [piece for plan, gradient in parts for _, piece in plan.pieces(gradient)]
        squares = torch.stack([piece.double().square().sum() for piece in pieces])
        squares = squares if clip.per_layer else squares.sum().reshape(1)
        dist.all_reduce(squares, group=self._group)
        factors = limit / squares.sqrt()
        factors = torch.where((factors > 0) & (factors < 1), factors, 1.0)
        for piece, factor in zip(pieces, factors.expand(len(pieces)), strict=True):
            piece.mul_(factor)


# ---------------------------------------------------------------------- the door


class FSDPDoor:
    """A model of ``fully_shard``, or what ``torch.compile`` has made of one.

    Args:
        model: not yet compressed.
        mesh: with the dimensions ``replicate`` and ``shard``; the model is sharded over the second.

    Attributes:
        group: the process group that its gradients are averaged over: this rank's replicas.
        parameters: all of them, as the optimizer knows them.
        gradients: as long with their padding, of the dtype and on the device of what comes to the hook, without memory;
            the same on every worker.
        trained: how many of them get a gradient.

    Raises:
        ValueError: no such model, or no such mesh.
        RuntimeError: it has a hook already.
    """

    def __init__(self, model: nn.Module, mesh: object) -> None:
        self._mesh = require_mesh(mesh)
        self._model = getattr(model, "_orig_mod", model)
        self._shards = sharded_modules(self._model, self._mesh)
        self.group: dist.ProcessGroup = self._mesh.get_group(0)
        held = [(shard, one) for shard in self._shards for one in shard.parameters]
        self.parameters = [one.parameter for _, one in held]
        self.gradients = [
            torch.empty(1, dtype=shard.dtype, device=self._mesh.device_type).expand(one.padded) for shard, one in held
        ]
        self.trained = sum(parameter.requires_grad for parameter in self.parameters)

    def require_reducible(self, scope: Scope, *, sends_all: bool) -> None:
        """Refuse parameters whose gradients cannot be kept, or are too long; see ``acceptance``."""
        require_reducible(self._shards, scope, sends_all=sends_all)

    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Return none, and warn of parameters whose outputs the first dimension does not tell apart."""
        turned = list(output_dimensions(self._model))
        if turned and dist.get_rank() == 0:
            warnings.warn(
                f"AdamRows keeps a second moment for each index of a shard's first dimension, but outputs lie along "
                f"another in {len(turned)} parameters, {turned[0]} first: that costs what AdamRows gains "
                "(docs/adamw.md). Write them as nn.Linear, whose weight is [outputs, inputs].",
                stacklevel=3,
            )
        return {}

    def register(
        self, settings: Settings, scaler: torch.amp.GradScaler | None, observer: Observer | None
    ) -> Compression:
        """Compress it: make replicas alike, as DDP does, and set the hooks.

        Raises:
            ValueError: momentum correction is to clip, by norms that no worker knows, outputs of AdamRows are named, or
                workers differ.
            RuntimeError: this torch hands gradients over in another order.
        """
        if settings.momentum is not None and settings.momentum.clip_norm is not None and self._mesh.size(1) > 1:
            raise ValueError(
                f"clip_norm of momentum must be None for a sharded model, got {settings.momentum.clip_norm}. Write "
                "compress(..., clip_norm=...), which sums the norm over shards."
            )
        if settings.precondition is not None and (named := settings.precondition.outputs):
            raise ValueError(
                f"outputs of AdamRows must be empty for a sharded model, got {named}. Leave them out: a shard has "
                "second moments by its first dimension alone."
            )
        compression = FSDPCompression(self._model, self._shards, self._mesh, settings, scaler=scaler, observer=observer)
        make_alike(self._shards, self.group)
        if self._mesh.size(0) == 1 < self._mesh.size(1) and dist.get_rank() == 0:
            warnings.warn(
                f"nothing is compressed on a mesh of one replica with {self._mesh.size(1)} shards: inside the shard "
                "group FSDP2 sends dense gradients, and there is no other group to send to; what is not selected waits "
                "all the same. Give the mesh more replicas, or leave gaussiank.compress out.",
                stacklevel=3,
            )
        self._compression = weakref.ref(compression)
        return compression

    def exchange_check(self) -> Callable[[], bool]:
        """Return what tells whether the last forward was one whose backward exchanges gradients."""
        return partial(_exchanges, self._compression)


def _exchanges(compression: weakref.ReferenceType[FSDPCompression]) -> bool:
    alive = compression()
    return alive is not None and alive.exchanging()


@torch.no_grad()
def make_alike(shards: list[ModuleShard], group: dist.ProcessGroup) -> None:
    """Give every replica the parameters of the first, where they differ: nobody else does, on a mesh of shards alone.

    Args:
        shards: of this rank.
        group: its replicas, each of which must call this.
    """
    digest = hashlib.sha256()
    held = [one.local for shard in shards for one in shard.parameters]
    for local in held:
        digest.update(local.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digests = [""] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest.hexdigest(), group=group)
    if len(set(digests)) > 1:
        for local in held:
            dist.broadcast(local, group=group, group_src=0)
