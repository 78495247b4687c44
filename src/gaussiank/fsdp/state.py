"""The compression of an FSDP2 model: leads each module's reduced shard onto the reducer of its replicate group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from gaussiank.comm import Done
from gaussiank.compression import Compression
from gaussiank.feedback import OptimizerUse
from gaussiank.layout import Layout
from gaussiank.metrics import Observer
from gaussiank.reducer import GradientReducer, Settings

from .shard import ModuleShard, Plan


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
        self._replicas = mesh.get_group("replicate")
        self._reducer = GradientReducer(
            {name: tuple(one.local.shape) for name, one in parameters.items()},
            settings,
            group=self._replicas,
            observer=observer,
            use=OptimizerUse({name: one.parameter for name, one in parameters.items()}),
        )
        if observer:
            held = {name: one.numel for name, one in parameters.items()}
            observer.attach(self.config, held, self._reducer.feedback, self._replicas)
        self._whole_model = settings.scope == "model"
        self._scaler = scaler
        self._shards = list(shards)
        self._hooks = [Hook(self, shard) for shard in shards]
        assert isinstance(model, FSDPModule)
        self._state = model._get_fsdp_state()
        self._backward = -1  # torch's number of the one under way
        self._waiting: list[_Waiting] = []
        for hook in self._hooks:
            hook.shard.module.set_all_reduce_hook(hook)

    # ------------------------------------------------------------------ the vectors of one backward

    def reduce(self, shard: ModuleShard, vector: Tensor) -> None:
        """Make one module's reduced shard the mean over replicas, in place: what follows the hook uses it at once."""
        plan = shard.plan(vector.numel())
        if not shard.exchanges:
            shard.put_off(vector)
            return
        shard.take_up(vector)
        if shard.sums:
            vector.mul_(self._reducer.world_size)
        self._begin(shard.unit)
        if not plan.layout.names:  # other ranks have all of it
            return
        gradient = plan.gradient(vector)
        if self._whole_model and not self._reducer.dense:
            self._waiting.append(_Waiting(shard, plan, gradient.clone()))
            vector.zero_()
            return
        self._reducer.wait(self._start(plan.layout, gradient))
        plan.write_back(gradient, vector)

    def _start(self, layout: Layout, gradient: Tensor) -> Done:
        if (done := self._reducer.repeat(lambda: layout, gradient)) is not None:
            return done
        if self._reducer.dense:
            return self._reducer.reduce_dense(lambda: layout, gradient)
        return self._reducer.reduce_sparse(layout, [gradient])

    def _begin(self, unit: float) -> None:
        """Begin a step with the first vector of a backward.

        Which vector is the last depends on the model: the root's may come before others'. So the end of the step is
        told by the end of the backward, after torch's own end of it, in which it reduces what is left.
        """
        if (backward := torch._C._current_graph_task_id()) == self._backward:
            return
        self._require_hooks()
        self._backward, self._waiting = backward, []
        self._reducer.begin(scale=unit * (self._scaler.get_scale() if self._scaler else 1.0))
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
            waiting, self._waiting = self._waiting, []
            names = tuple(name for one in waiting for name in one.plan.layout.names)
            numels = tuple(numel for one in waiting for numel in one.plan.layout.numels)
            self._reducer.wait(self._reducer.reduce_sparse(Layout(names, numels), [one.gradient for one in waiting]))
            for one in waiting:
                one.shard.add_to_grads(one.plan, one.gradient)
        self._reducer.seal()

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
