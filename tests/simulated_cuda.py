"""A CUDA device that is not there: real values on the CPU, with the rules of streams, of NCCL and of CUDA's allocator.

``SimulatedCuda`` makes tensors that say they are on ``cuda:0``. Each op on them runs at once on the CPU, so that values
are right, and is noted on the stream that it would run on. Messages go over a real group of Gloo, with what NCCL
promises: enqueued on a stream of its own that waits for the caller's, its future complete at once, so that a callback
runs in the thread that gave it, on a stream of a pool. What is found is told in ``findings``:

- ``host wait``: the host stops until the device has done what is queued, in the thread that runs the training loop;
- ``thread wait``: another thread does;
- ``race``: an op uses memory that another stream still uses, with no order between the two;
- ``two devices``: an op takes a tensor of the CPU beside one of the device;
- ``order``: a message is started by another thread than the one that runs the training loop, or while one over another
  group may still run, or, as the first of its group, between some of its workers alone;
- ``freed in use``: memory goes back to the stream that allocated it, which may hand it out again at once, while another
  stream still uses it: the last reference was dropped too early, and there was no ``record_stream``.

What waits it knows by torch's own tags, as FakeTensorMode does. That would show no more: it knows neither values nor
streams, and no thread carries it from the hook to a callback.

It knows nothing of the package's names: torch's own are replaced while ``installed``. It does not know DDP's reducer,
several devices, CUDA graphs, or what NCCL does when a worker is gone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.tensor  # or torch imports it at the first tensor, while its own names are replaced
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
Clock = Counter[int]  # stream -> how many of its ops have ended; what is not in it has not begun
Use = tuple["Stream", int, str]  # on which stream, as which of its ops, called from where

_WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # by which FakeTensorMode refuses an op
_FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_strided", "full", "linspace"),
    *("ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
)
_LATER = ("send", "recv_")  # a peer may not be there yet: awaited when the caller waits
_WAIT_S = 60  # for a thread that fulfils a future


class Stream:
    """What runs in order; knows how far the streams are that it waited for."""

    _ids = itertools.count()

    def __init__(self, *_: Any, name: str = "side", **__: Any) -> None:
        self.id, self.name = next(self._ids), name
        self.clock: Clock = Counter()

    def wait(self, clock: Clock) -> None:
        self.clock |= clock

    def wait_stream(self, other: Stream) -> None:
        self.wait(other.clock)

    def wait_event(self, event: Event) -> None:
        self.wait(event.clock)

    def launch(self) -> int:
        self.clock[self.id] += 1
        return self.clock[self.id]

    def behind(self, use: Use) -> bool:
        stream, count, _ = use
        return stream is not self and self.clock[stream.id] < count


class Memory:
    """A storage: who allocated it, who uses it, and how many tensors still refer to it."""

    def __init__(self, device: SimulatedCuda, bytes_: int) -> None:
        self.device, self.bytes, self.allocated_on, self.born = device, bytes_, device.current, _where()
        self.written: Use | None = None
        self.read: dict[int, Use] = {}
        self.recorded: set[int] = set()
        self.references = 0

    def uses(self) -> list[Use]:
        return [*([self.written] if self.written else []), *self.read.values()]

    def freed(self) -> None:
        foreign = [
            use
            for use in self.uses()
            if use[0] is not self.allocated_on
            and use[0].id not in self.recorded
            and self.device.host[use[0].id] < use[1]
        ]
        if (
            self.allocated_on.name == "callback"
        ):  # its stream runs on only in a later callback, behind what that waits for
            self.device.freed_by_callbacks.extend((use, self.born) for use in foreign)
            return
        for use in foreign:
            if self.allocated_on.behind(use):
                self.device.tell_freed(self.allocated_on.name, self.born, use)


class Event:
    """``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock: Clock = Counter()

    def record(self, stream: Stream | None = None) -> None:
        self.clock = Counter((stream or _device().current).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _device().current).wait(self.clock)

    def query(self) -> bool:
        return not any(_device().host[stream] < count for stream, count in self.clock.items())

    def synchronize(self) -> None:
        device = _device()
        device.waits_for_events += 1
        device.host |= self.clock


class Future:
    """``torch.futures.Future`` as NCCL uses it: of a tensor that streams must wait for."""

    def __init__(self, *, devices: object = None) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._clock: Clock = Counter()
        self._callbacks: list[Callable[[], None]] = []

    @classmethod
    def __class_getitem__(cls, _: object) -> type[Future]:
        return cls

    def set_result(self, value: Any) -> None:
        self._end(value, None)

    def _end(self, value: Any, error: BaseException | None) -> None:
        self._clock = Counter(_device().current.clock)
        with self._lock:
            self._value, self._error = value, error
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def then(self, function: Callable[[Any], Any]) -> Future:
        child = Future()

        def call() -> None:
            device = _device()
            stream = Stream(name="callback")
            stream.wait(self._clock)
            device.begin_callback(stream)
            if isinstance(self._value, SimulatedTensor):
                self._value.record_stream(stream)  # torch does so for a future's value, and for nothing else
            with device.on(stream):
                try:
                    value, error = function(self), None
                except Exception as raised:  # noqa: BLE001  as torch does: whoever reads the future gets it
                    value, error = None, raised
                child._end(value, error)

        with self._lock:
            ended = self._ended.is_set()
            if not ended:
                self._callbacks.append(call)
        if ended:
            call()
        return child

    def done(self) -> bool:
        return self._ended.is_set()

    def value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self) -> Any:
        assert self._ended.wait(_WAIT_S), "nobody has fulfilled the future"
        device = _device()
        device.current.wait(self._clock)
        if isinstance(self._value, SimulatedTensor):
            self._value.record_stream(device.current)
        return self.value()


class SimulatedTensor(torch.Tensor):
    """A tensor of the CPU, ``on_host``, that says it is on ``cuda:0``."""

    on_host: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> SimulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device="cpu"
        )
        made.on_host = real
        _device().refer(made)
        return made

    device = property(lambda self: CUDA)
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self) -> int:
        return self.on_host.data_ptr()

    def record_stream(self, stream: Stream) -> None:
        _device().memory(self.on_host).recorded.add(stream.id)

    def to(self, *args: Any, non_blocking: bool = False, copy: bool = False, **more: Any) -> torch.Tensor:
        target = _asked_device(args, more)
        if target is not None and target.type == "cpu":
            _device().host_wait("copy to the host")
            return self.on_host.to(*args, **more).clone()
        args = tuple(one for one in args if not isinstance(one, (torch.device, str)))
        more.pop("device", None)
        return torch._C.TensorBase.to(self, *args, copy=copy, **more) if args or more or copy else self

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        _device().host_wait("tolist")
        return self.on_host.tolist()

    def numpy(self) -> Any:
        raise TypeError("a tensor on cuda:0 has no numpy array")

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.on_host})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _device().dispatch(function, args, dict(kwargs or {}))


class SimulatedCuda:
    """The device: its streams, its memory, and what was found.

    Attributes:
        findings: (kind, sentence), each once.
        launches: ops that would be kernels.
        waits_for_events: how often the host waited for an event of its own, and for nothing that was queued later.
        gathered_bytes: lengths of the rows that all-gathers sent.
    """

    def __init__(self) -> None:
        self.main = Stream(name="main")
        self.groups: dict[str, Stream] = {}  # NCCL has a stream for each of its communicators
        self._ends: dict[dist.Work, Clock] = {}  # where each message ends on its stream
        self.host: Clock = Counter()
        self.findings: list[tuple[str, str]] = []
        self.launches = self.waits_for_events = 0
        self.freed_by_callbacks: list[tuple[Use, str]] = []
        self._local = threading.local()
        self._memories: dict[int, Memory] = {}
        self._pinned: set[int] = set()  # addresses; a process pins few
        self.gathered_bytes: set[int] = set()
        self._known_to_torch: list[Any] = []  # NCCL keeps what a message uses until it is over

    # ------------------------------------------------------------------ for tests

    @contextlib.contextmanager
    def installed(self) -> Iterator[SimulatedCuda]:
        """Replace what torch has for CUDA, everywhere in this process."""
        _installed.append(self)
        with pytest.MonkeyPatch.context() as patch:
            self._replace(patch)
            try:
                yield self
            finally:
                self._known_to_torch.clear()
        _installed.clear()

    @property
    def held_bytes(self) -> int:
        """Bytes of all memory that something refers to."""
        return sum(memory.bytes for memory in self._memories.values() if memory.references)

    def tensor(self, real: torch.Tensor) -> SimulatedTensor:
        """Return a copy on the device, made on the current stream."""
        made = SimulatedTensor(real.clone())
        self.memory(made.on_host).written = (self.current, self.current.launch(), "test")
        return made

    def end_step(self) -> None:
        """Let NCCL know that its messages are over: it drops what it kept of them."""
        self._known_to_torch.clear()
        self._ends.clear()

    # ------------------------------------------------------------------ streams and the host

    @property
    def current(self) -> Stream:
        stream: Stream = getattr(self._local, "stream", self.main)
        return stream

    @contextlib.contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        before = self.current
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before

    def host_wait(self, what: str) -> None:
        self.host |= self.current.clock
        thread = "host wait" if threading.current_thread() is threading.main_thread() else "thread wait"
        self.tell(thread, f"{what} at {_where()}")

    def begin_callback(self, stream: Stream) -> None:
        freed, self.freed_by_callbacks = self.freed_by_callbacks, []
        for use, born in freed:
            if stream.behind(use):
                self.tell_freed("callback", born, use)

    # ------------------------------------------------------------------ memory

    def memory(self, real: torch.Tensor) -> Memory:
        key = real.untyped_storage()._cdata
        if key not in self._memories:
            self._memories[key] = Memory(self, real.untyped_storage().nbytes())
        return self._memories[key]

    def refer(self, tensor: SimulatedTensor) -> None:
        storage, memory = tensor.on_host.untyped_storage(), self.memory(tensor.on_host)
        memory.references += 1
        weakref.finalize(tensor, self._drop, storage, memory)

    def _drop(self, storage: torch.UntypedStorage, memory: Memory) -> None:
        memory.references -= 1
        if not memory.references:
            memory.freed()
            self._memories.pop(storage._cdata, None)

    def tell(self, kind: str, text: str) -> None:
        if (kind, text) not in self.findings:
            self.findings.append((kind, text))

    def tell_freed(self, stream: str, born: str, use: Use) -> None:
        self.tell(
            "freed in use",
            f"allocated on {stream} at {born}, freed while {use[0].name} still uses it, last at {use[2]}",
        )

    # ------------------------------------------------------------------ ops

    def dispatch(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        space, name = function._schema.name.split("::")
        if name == "detach":
            return SimulatedTensor(args[0].on_host.detach())
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, SimulatedTensor)]
        if space == "c10d":
            return self._message(function, name, args, kwargs, given)
        host = self._host_side(function, name, args, kwargs)
        self._same_device(name, args, kwargs)
        result = function(*tree_map(_real, args), **tree_map(_real, kwargs))
        if not _is_view(function, name):
            self._run(name, given, _written(function, args, kwargs))
        known = {id(one.on_host): one for one in given}
        if host == "to host":
            return args[0]
        wrapped = tree_map(lambda one: self._wrap(one, known, view=_is_view(function, name)), result)
        if host:
            self.host_wait(host)
        return wrapped

    def _same_device(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Tell of a tensor on the CPU where CUDA takes none: only numbers, copies, and indices, for which it waits."""
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        foreign = [one for one in tensors if not isinstance(one, SimulatedTensor) and one.dim()]
        if foreign and name != "copy_":
            if name.startswith("index"):
                self.host_wait("copy of indices to the device")
            else:
                self.tell("two devices", f"{name} at {_where()}")

    def _host_side(self, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> str:
        """Return why the host waits for the op, or "" if it does not."""
        if _WAITING & set(function.tags) and not name.startswith("index"):  # which waits for masks alone
            return name
        if name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool
            for one in (args[1] or [] if len(args) > 1 and isinstance(args[1], (list, tuple)) else [])
        ):
            return f"{name} by a mask"
        if name == "copy_":
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            here, there = (isinstance(one, SimulatedTensor) for one in args[:2])
            if here and not there and isinstance(args[1], torch.Tensor) and blocking and args[1].dim():
                self.host_wait("copy to the device")
            if there and not here:
                if blocking or args[0].data_ptr() not in self._pinned:
                    self.host_wait("copy to the host")
                return "to host"
        return ""

    def _run(
        self, name: str, given: list[SimulatedTensor], written: list[SimulatedTensor], stream: Stream | None = None
    ) -> None:
        stream = stream or self.current
        stream.wait(self.host)
        self.launches += 1
        use = (stream, stream.launch(), f"{name} at {_where()}")
        for one in given:
            memory = self.memory(one.on_host)
            if memory.written and stream.behind(memory.written):
                self.tell(
                    "race",
                    f"{use[2]} on {stream.name} reads what {memory.written[0].name} wrote by {memory.written[2]}",
                )
        for one in written:
            for other in self.memory(one.on_host).uses():
                if stream.behind(other):
                    self.tell("race", f"{use[2]} on {stream.name} overwrites what {other[0].name} uses by {other[2]}")
        for one in given:
            self.memory(one.on_host).read[stream.id] = use
        for one in written:
            memory = self.memory(one.on_host)
            memory.written, memory.read = use, {}

    def _wrap(self, one: Any, known: dict[int, SimulatedTensor], *, view: bool) -> Any:
        if not isinstance(one, torch.Tensor) or isinstance(one, SimulatedTensor):
            return one
        if id(one) in known:
            return known[id(one)]
        made = SimulatedTensor(one)
        memory = self.memory(one)
        if not view and memory.written is None:
            memory.written = (self.current, self.current.clock[self.current.id], _where())
        return made

    def _message(
        self, function: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[SimulatedTensor]
    ) -> Any:
        """Send over the real group; on the device, NCCL's stream waits for the caller's and uses the tensors."""
        group = next(dist.ProcessGroup.unbox(one).group_name for one in args if _is_group(one))
        nccl = self.groups.get(group)
        if threading.current_thread() is not threading.main_thread():
            self.tell("order", f"{name} is started by a thread of its own at {_where()}")
        if nccl is None:
            nccl = self.groups[group] = Stream(name="nccl")
        if group not in _used:
            _used.add(group)
            if name in _LATER:
                self.tell("order", f"{name} is the first message of its group at {_where()}")
        for other in self.groups.values():
            if other is not nccl and self.current.clock[other.id] < other.clock[other.id]:
                self.tell("order", f"{name} may run beside a message over another group at {_where()}")
        nccl.wait(self.current.clock)
        result = function(*tree_map(_real, args), **tree_map(_real, kwargs))
        if name == "_allgather_base_":
            self.gathered_bytes.add(given[1].numel() * given[1].element_size())
        work = dist.Work.unbox(result[-1] if isinstance(result, tuple) else result)
        if name not in _LATER:
            _plain_wait(work)
        self._run(name, given, [] if name == "send" else given[:1] if name == "alltoall_base_" else given, nccl)
        self._ends[work] = Counter(nccl.clock)
        self._known_to_torch.append(given)
        return result

    def _replace(self, patch: pytest.MonkeyPatch) -> None:
        for name in _FACTORIES:
            patch.setattr(torch, name, self._factory(getattr(torch, name)))
        plain_to, plain_generator = torch.Tensor.to, torch.Generator

        def to(tensor: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
            target = _asked_device(args, more)
            if target is None or target.type != "cuda":
                return plain_to(tensor, *args, **more)
            if not more.get("non_blocking"):
                self.host_wait("copy to the device")
            kept = [one for one in args if not isinstance(one, (torch.device, str))]
            return self.tensor(
                plain_to(tensor, *kept, **{k: v for k, v in more.items() if k not in ("device", "non_blocking")})
            )

        plain_where = torch.where

        def where(condition: torch.Tensor, *chosen: Any) -> Any:  # Python's numbers are filled in on the device
            of_cpu = [one for one in chosen if isinstance(one, torch.Tensor) and not isinstance(one, SimulatedTensor)]
            if isinstance(condition, SimulatedTensor) and of_cpu:
                self.host_wait("copy of a number to the device")
            return plain_where(condition, *chosen)

        def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
            pinned = tensor.clone()
            self._pinned.add(pinned.data_ptr())
            return pinned

        def get_future(work: dist.Work) -> Future:
            future, end = Future(), Stream(name="nccl")
            end.wait(self._ends[work])
            with self.on(end):
                future.set_result(None)
            return future

        def wait(work: dist.Work, *args: Any) -> Any:
            _plain_wait(work, *args)
            self.current.wait(self._ends.get(work, Counter()))
            return True

        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch, "where", where)
        patch.setattr(torch.Tensor, "pin_memory", pin_memory)
        patch.setattr(torch, "Generator", lambda device="cpu": plain_generator())
        patch.setattr(torch.futures, "Future", Future)
        patch.setattr(dist.Work, "get_future", get_future)
        patch.setattr(dist.Work, "wait", wait)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def _factory(self, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make(*args: Any, **more: Any) -> torch.Tensor:
            device, pinned = more.pop("device", None), more.pop("pin_memory", False)
            if device is not None and torch.device(device).type != "cuda":
                more["device"] = device
            made = plain(*args, **more)
            if pinned:
                self._pinned.add(made.data_ptr())
            if device is None or torch.device(device).type != "cuda":
                return made
            if plain.__name__ in ("tensor", "as_tensor"):
                self.host_wait("copy to the device")
            on_device = self.tensor(made)
            if not plain.__name__.startswith(("empty", "tensor", "as_tensor")):
                self._run(plain.__name__, [], [on_device])  # zeros are filled in by a kernel of torch too
            return on_device

        return make


_installed: list[SimulatedCuda] = []
_used: set[str] = set()  # groups, in this process, that have sent something
_plain_wait = dist.Work.wait


def _device() -> SimulatedCuda:
    return _installed[0]


def _is_group(one: Any) -> bool:
    return isinstance(one, torch.ScriptObject) and one._type().name() == "ProcessGroup"


def _real(one: Any) -> Any:
    return one.on_host if isinstance(one, SimulatedTensor) else one


def _asked_device(args: tuple[Any, ...], more: dict[str, Any]) -> torch.device | None:
    for one in (*args, more.get("device")):
        if isinstance(one, (torch.device, str)):
            return torch.device(one)
        if isinstance(one, torch.Tensor):
            return one.device
    return None


@functools.cache
def _is_view(function: Any, name: str) -> bool:
    returns = function._schema.returns
    aliased = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    return aliased or name in ("_unsafe_view", "_reshape_alias") or name.startswith(("empty", "new_empty"))


def _written(function: Any, args: Any, kwargs: dict[str, Any]) -> list[SimulatedTensor]:
    named = zip(function._schema.arguments, args, strict=False)
    written = [given for argument, given in named if argument.alias_info is not None and argument.alias_info.is_write]
    written += [kwargs[name] for name in ("out",) if name in kwargs]
    return [one for one in tree_leaves(written) if isinstance(one, SimulatedTensor)]


def _where() -> str:
    """Name the innermost function of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.rpartition("/gaussiank/")
        if inside:
            return f"{file}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "test"
