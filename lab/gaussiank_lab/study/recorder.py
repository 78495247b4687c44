"""A Recorder watches the gradients of a run: sketches and laws of every vector, to a file and to TensorBoard."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import gaussiank
from gaussiank.collectives import AllGather, DenseAllReduce
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.metrics import Residuals
from gaussiank.reducer import Selector
from gaussiank.sparse import SparseGradient
from gaussiank_lab.report.records import RecordWriter, written_before
from gaussiank_lab.study.sampling import Sample, SampledPart, SentLog
from gaussiank_lab.study.sketch import Sketch
from gaussiank_lab.study.study import FORMAT, STUDY_NAME
from gaussiank_lab.study.vectors import Snapshot, VectorStore

_HISTOGRAM_BITS = 1


class Board(Protocol):
    """The part of torch's ``SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add a point to a curve."""
        ...

    @property
    def add_histogram_raw(self) -> Callable[..., None]:
        """What adds a histogram of which only the buckets are known; torch names its arguments after built-ins."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def open_board(folder: Path) -> Board:
    """Open TensorBoard's writer.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard must be installed for tensorboard=True, got an environment without it. "
            "Run: pip install gaussiank-lab[tensorboard]"
        ) from None
    board: Board = SummaryWriter(str(folder))
    return board


def show(board: Board, record: Mapping[str, Any]) -> None:
    """Add a sample: its histograms, and what can be told in one number."""
    step = record["step"]
    for name, fields in record["vectors"].items():
        sketch = Sketch.from_record(fields)
        board.add_scalar(f"norm/{name}", sketch.square_sum**0.5, step)
        board.add_scalar(f"kurtosis/{name}", sketch.kurtosis, step)
        board.add_scalar(f"zeros/{name}", sketch.zeros / max(1, sketch.numel), step)
        _show_histogram(board, f"distribution/{name}", sketch.fold(_HISTOGRAM_BITS), step)
    if record.get("k"):
        board.add_scalar("kept over k", record["kept"] / record["k"], step)
        board.add_scalar("contraction/live", record["contraction"], step)
    for name, tried in record.get("operators", {}).items():
        board.add_scalar(f"contraction/{name}", tried["contraction"], step)
    if "cosine" in record:
        board.add_scalar("cosine with the dense mean", record["cosine"], step)
    if "age" in record:
        board.add_scalar("age of the residual", record["age"]["mean"], step)


def _show_histogram(board: Board, tag: str, sketch: Sketch, step: int) -> None:
    counts, edges = sketch.counts, sketch.edges
    filled = np.flatnonzero(counts[:, : -(1 << sketch.bits)].sum(axis=0))
    if not filled.size:
        return
    first, last = max(int(filled[0]), 1 << sketch.bits), int(filled[-1]) + 1
    minus = counts[1, first:last][::-1]
    plus = counts[0, first:last]
    limits = [*(-edges[first:last][::-1]), edges[first], *edges[first + 1 : last + 1]]
    board.add_histogram_raw(
        tag,
        min=float(-edges[last]),
        max=float(edges[last]),
        num=sketch.numel,
        sum=sketch.mean * sketch.numel,
        sum_squares=sketch.square_sum,
        bucket_limits=[float(limit) for limit in limits],
        bucket_counts=[*minus.tolist(), sketch.numel - int(minus.sum() + plus.sum()), *plus.tolist()],
        global_step=step,
    )


class StudyWriter:
    """Write a study, on the worker that records it; nothing before ``open``.

    Args:
        run_dir: directory of the study.
        store: of the raw vectors.
        tensorboard: also write below ``RUN/tensorboard``.
    """

    def __init__(self, run_dir: Path, store: VectorStore, *, tensorboard: bool) -> None:
        self._run_dir, self._store, self._tensorboard = run_dir, store, tensorboard
        self._lines: RecordWriter | None = None
        self._board: Board | None = None

    @property
    def is_open(self) -> bool:
        """Whether this worker writes."""
        return self._lines is not None

    @property
    def written(self) -> tuple[int, int]:
        """Bytes of the lines so far and their CRC-32, all on disk; of nothing when it is not open."""
        return (0, 0) if self._lines is None else self._lines.sync()

    def open(self, opening: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        """Begin a study, or go on with one where ``state_dict`` was taken; one whose file is gone begins anew.

        Raises:
            FileExistsError: a study is there, and it is not gone on with.
            ValueError: it does not begin as it did when its state was taken.
        """
        begin = b""
        if state is not None:
            begin = written_before(self._run_dir / STUDY_NAME, state["size_bytes"], state["crc32"])
            self._store.load_state_dict(state["vectors"])
        self._lines = RecordWriter(self._run_dir, begin or None, STUDY_NAME).__enter__()
        if not begin:
            self._lines.write(opening)
        if self._tensorboard:
            self._board = open_board(self._run_dir / "tensorboard")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, and draw it on the board."""
        assert self._lines is not None  # it is open
        self._lines.write(record)
        if self._board is not None:
            show(self._board, record)

    def keep_vectors(self, sample: Sample, rank: int, numel: int, *, segments_per_layer: bool) -> None:
        """Keep what a sample selected from, if it is its turn."""
        if self._store.wants_next():
            stride = self._store.stride(numel)
            pieces = sample.pieces(stride, segments_per_layer=segments_per_layer and stride == 1)
            if pieces:
                self._store.save(Snapshot(sample.step, rank, stride, pieces))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the files have come, which are on disk as far as that."""
        size_bytes, crc32 = self.written
        return {"size_bytes": size_bytes, "crc32": crc32, "vectors": self._store.state_dict()}

    def close(self) -> None:
        """Close the files."""
        if self._lines is not None:
            self._lines.__exit__(None, None, None)
            self._lines = None
        if self._board is not None:
            self._board.close()
            self._board = None


class Recorder:
    """Record the distributions of gradient g, residual e and accumulated vector u while a model trains.

    Every ``every``-th step it sketches the vectors of this worker, per layer and whole, measures the contraction of
    what was sent and of other operators, and notes kept/k of every step in between; rank 0 writes
    ``RUN/gradients.jsonl``, which ``gaussiank analyze RUN`` draws. Laws are fitted when a run is read, from
    the sketches, so they cost the training nothing. ``benchmarks/recorder_overhead.py`` measures what the rest costs:
    at 50 steps a sample 0.4 % for ResNet-20 and 1.2 % for LeNet-5, but 3 % where a step takes 2 ms (FNN-3).

    Give it to ``gaussiank.compress(model, recorder=recorder)``, or without compression to
    ``recorder.watch(model, optimizer)``; close it after training, or use it as a context.

    Args:
        run_dir: directory to write to; it must hold no study yet.
        every: steps from one sample to the next; a larger number costs less time and shows less.
        operators: compressors to try on each recorded u besides the one that runs, as ``parse_compressor`` takes them.
            Each costs its selection.
        dense_mean: compare each sampled mean with the mean of the dense gradients (``cosine``). Costs one dense
            all-reduce a sample, which a slow network notices.
        per_layer: record every layer, besides the whole model.
        vectors: most raw vectors u to keep for ``gaussiank replay``; 0 keeps none, and so must ``watch``.
        vector_bytes: most bytes that they take together; larger models are thinned.
        tensorboard: also write to TensorBoard, below ``RUN/tensorboard`` (``pip install gaussiank-lab[tensorboard]``).
        resume: go on with a study; nothing is recorded before ``load_state_dict`` has said where.

    Raises:
        ValueError: an argument out of its range, or an unknown operator.
        FileExistsError: when recording starts, if the directory holds a study.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(20, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> run_dir = tempfile.mkdtemp()
        >>> with Recorder(run_dir, every=1) as recorder:
        ...     recorder.watch(model, optimizer)
        ...     model(torch.ones(1, 20)).sum().backward()
        ...     optimizer.step()
        >>> from gaussiank_lab.study.study import read_study
        >>> read_study(run_dir).samples[0].vectors["grad"].numel
        105
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        every: int = 50,
        operators: Sequence[str] = (),
        dense_mean: bool = False,
        per_layer: bool = True,
        vectors: int = 0,
        vector_bytes: int = 100_000_000,
        tensorboard: bool = False,
        resume: bool = False,
    ) -> None:
        for argument, value, least in (("every", every, 1), ("vectors", vectors, 0), ("vector_bytes", vector_bytes, 1)):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}. Raise it.")
        self._every = every
        self._operators = {spec: parse_compressor(spec) for spec in operators}
        self._dense_mean = dense_mean
        self._per_layer = per_layer
        self._keeps_vectors = vectors > 0
        store = VectorStore(run_dir, vectors, vector_bytes)
        self._files = StudyWriter(Path(run_dir), store, tensorboard=tensorboard)
        self._resume = resume
        self._opening: dict[str, Any] = {}
        self._selectors: dict[str, Selector] = {}
        self._residuals: Residuals | None = None
        self._sent = SentLog({})
        self._keeps_rest = True
        # With momentum correction u is residual + velocity, which nobody shows; it is read back from what was sent and
        # what stayed. That is right where only a worker's own entries come back to it, as in an all-gather (True); else
        # there is no u in the records (False). None: no correction, u is residual + gradient.
        self._corrected: bool | None = None
        self._group: Any = None
        self._rank = 0
        self._segments_per_layer = False
        self._step = -1
        self._sample: Sample | None = None
        self._plain: tuple[Layout, list[nn.Parameter]] | None = None
        self._handle: Any = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ any loop

    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Look at the model's gradients before each step of its optimizer; they are what the optimizer is given.

        After a ``GradScaler`` they are unscaled, after accumulation they are the sum, under DDP the mean over workers.

        Raises:
            RuntimeError: the recorder watches something already.
            ValueError: the recorder is to keep raw vectors, which are those that a compression selects from.
        """
        if self._keeps_vectors:
            raise ValueError("vectors must be 0 for watch, got more. Leave it out, or use compress(recorder=...).")
        module = getattr(model, "module", model)
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        numels = {name: parameter.numel() for name, parameter in named}
        self._open({}, numels, None)
        self._plain = Layout(tuple(numels), tuple(numels.values())), [parameter for _, parameter in named]
        self._handle = optimizer.register_step_pre_hook(self._before_optimizer)

    def _before_optimizer(self, *_: object) -> None:
        assert self._plain is not None
        self.begin(self._step + 1, 1.0)
        if self._sample is not None:
            layout, parameters = self._plain
            with torch.no_grad():
                flat = [
                    torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
                    for parameter in parameters
                ]
                self.taking(layout, [part.float() for part in flat])

    # ------------------------------------------------------------------ what the hook calls

    @property
    def settings(self) -> Mapping[str, object]:
        """What must be the same on every worker."""
        return {"every": self._every, "dense_mean": self._dense_mean}

    def attach(self, config: Mapping[str, object], numels: Mapping[str, int], residuals: Residuals, group: Any) -> None:
        """Start recording a compressed model; called by ``compress``."""
        self._open(config, numels, group)
        self._residuals = residuals
        self._sent = SentLog(numels)
        self._keeps_rest = bool(getattr(config.get("compressor"), "keeps_rest", True))
        if config.get("momentum") is not None:
            self._corrected = isinstance(config.get("collective", AllGather()), (AllGather, DenseAllReduce))

    def begin(self, step: int, density: float) -> None:
        """Write the sample of the last step, whose residuals are committed by now, and begin another."""
        if self._sample is not None:
            self._finish()
        self._step = step
        self._sample = Sample(step, density) if step % self._every == 0 else None

    def taking(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Copy what a sampled step starts from."""
        if self._sample is None:
            return
        if not self._files.is_open:  # another rank: it only helps with the dense mean
            self._dense(torch.cat(list(grads)))
            return
        part = SampledPart(layout, torch.cat([grad.detach() for grad in grads]))
        if self._residuals is not None and self._keeps_rest:
            part.residual = self._read_residual(layout, part.grad)
        part.dense_mean = self._dense(part.grad.clone())
        self._sample.parts[layout] = part

    def taken(self, layout: Layout, k: int, sparse: SparseGradient | None) -> None:
        """Note what was sent, at every step."""
        if not self._files.is_open:
            return
        self._sent.note(self._step, k, layout, sparse)
        if self._sample is not None and layout in self._sample.parts:
            part = self._sample.parts[layout]
            part.k, part.sparse = k, sparse

    def arrived(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Compare a sampled mean."""
        if self._sample is not None:
            self._sample.compare(layout, torch.cat(list(grads)) if len(grads) > 1 else grads[0])

    # ------------------------------------------------------------------ saving

    @property
    def written(self) -> tuple[int, int]:
        """Bytes written so far and their CRC-32, all on disk; of nothing on other ranks than 0."""
        return self._files.written

    def state_dict(self) -> dict[str, Any]:
        """Return what a recorder needs to go on from here, for a checkpoint; call it between steps, on every worker.

        The sample of the last step is written first. The study itself stays in its file.
        """
        self._settle()
        if not self._files.is_open:
            return {"step": self._step}
        hints = {spec: dict(selector.hints) for spec, selector in self._selectors.items()}
        return {"step": self._step, "sent": self._sent.state_dict(), "hints": hints, "files": self._files.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the study is cut back to what it held then, and goes on behind that.

        Call it on every worker once the recorder watches, and after the backward that is thrown away. A study whose
        file is gone, or an empty state, begins anew.

        Args:
            state: this worker's, or rank 0's.

        Raises:
            RuntimeError: the recorder was not made with ``resume``, or has been told already.
            ValueError: the study does not begin as it did.
        """
        if not self._resume or not self._opening:
            raise RuntimeError(
                "recorder must be made with resume=True, and watch a model, to load a state. Load it once, before the "
                "first step."
            )
        if not self._rank:
            self._files.open(self._opening, state.get("files"))
            self._sent.load_state_dict(state.get("sent", {}))
            for spec, hints in state.get("hints", {}).items():
                if spec in self._selectors:
                    self._selectors[spec].load_hints(hints)
        self._resume, self._sample, self._step = False, None, state.get("step", -1)

    # ------------------------------------------------------------------ writing

    def _settle(self) -> None:
        """Write the sample of the last step, which no step follows yet."""
        if self._residuals is not None and self._sample is not None:
            self._residuals.settle()
        self._finish()

    def close(self) -> None:
        """Write what is left and close the files; a second call does nothing."""
        self._settle()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._files.close()

    def _open(self, config: Mapping[str, object], numels: Mapping[str, int], group: Any) -> None:
        if self._opening or self._plain is not None or self._residuals is not None:
            raise RuntimeError("recorder must watch one model, got a second. Make another Recorder for it.")
        together = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank(group) if together else 0
        self._group = group
        self._segments_per_layer = config.get("scope") == "layer"
        self._selectors = {
            spec: Selector(compressor, per_layer=self._segments_per_layer, rank=self._rank)
            for spec, compressor in self._operators.items()
        }
        self._opening = {
            "kind": "study",
            "format": FORMAT,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "gaussiank": gaussiank.__version__,
            "torch": str(torch.__version__),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "world_size": dist.get_world_size(group) if together else 1,
            "rank": self._rank,
            "every": self._every,
            "compression": {key: str(value) for key, value in config.items() if key != "model parameters"},
            "layers": dict(numels),
        }
        if not self._resume and not self._rank:
            self._files.open(self._opening)

    def _dense(self, grad: Tensor) -> Tensor | None:
        """Sum a gradient over workers, in place, if that is asked for; the scale does not matter."""
        if not self._dense_mean:
            return None
        if dist.is_initialized() and dist.get_world_size(self._group) > 1:
            # waits: the callback that needs it must not wait for a collective itself (Gloo would hang)
            dist.all_reduce(grad, group=self._group)
        return grad

    def _read_residual(self, layout: Layout, grad: Tensor) -> Tensor:
        assert self._residuals is not None
        return self._residuals.residuals(layout).to(grad.device)

    @torch.no_grad()
    def _finish(self) -> None:
        """Write the sample that is waiting, if there is one."""
        sample, self._sample = self._sample, None
        if sample is None or not sample.parts or not self._files.is_open:
            return
        if self._residuals is not None and sample.finite:
            for part in sample.parts.values():
                if self._corrected is None:
                    part.add_up()
                elif self._corrected:
                    part.read_back(self._read_residual(part.layout, part.grad))
        record = sample.record(self._selectors, per_layer=self._per_layer) | self._sent.record(sample.step)
        self._files.write(record)
        if "kept" in record:
            self._files.keep_vectors(sample, self._rank, record["numel"], segments_per_layer=self._segments_per_layer)
