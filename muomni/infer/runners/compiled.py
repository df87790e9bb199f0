"""The runner that `torch.compile` makes: whole steps as one compiled call each, of static shapes.

How it works. A step is one token of each of B slots ("decode") or a piece of one slot's prompt ("prefill"). Each is
compiled for *buckets*: a number of rows and a number of positions to attend to, both powers
of two. A call is padded to its bucket with copies of its last row: a copy stores what is stored anyway, so nothing
needs a place of its own. What lies in the cache behind a row's position is masked out.

A bucket is compiled in a background thread when it is first asked for, without running it; until it is there a larger
one serves, or torch's modules. Inductor keeps its code on disk, so that another process compiles little. On a GPU the
first step of a bucket runs as compiled, which loads its kernels, and the second is captured as a CUDA graph;
greedy steps then follow one another without the host, which waits for the tokens of a whole call.

Products with int8 weights: for a few rows Inductor makes one loop of the conversion and the product ("fused" in
`ops.int8`); above that the layer's own kernel is called.

Legend: N tokens of a batch, B rows, T tokens of a chunk, C positions attended to, V vocabulary.
"""

import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.accel.int8 import copy_for_compiling
from muomni.errors import first_line
from muomni.infer.runners.compiled_step import run_step
from muomni.infer.sampling import on_device
from muomni.model import OmniModel, SlotCache
from muomni.model.kv_cache import Span, find_spans

Kind = Literal["decode", "prefill"]
# Positions of the smallest bucket, and tokens of the smallest chunk: below, less is gained than compiling costs.
_LEAST_CONTEXT, _LEAST_CHUNK = 256, 16
# A bucket may serve what is this much smaller, until there is a fitting one.
_WASTE = 4
# More chunks than this in a step are faster in one pass of the modules than one by one.
_MOST_CHUNKS = 4
# Up to this many tokens of a chunk may have their logits wanted (a draft that is verified); of longer ones, one.
_MOST_WANTED = 64


class Bucket(NamedTuple):
    """The shapes that one compiled step has.

    Attributes:
        kind: of the step.
        rows: B, or T.
        context: C.
        wanted: rows that logits are computed for.
    """

    kind: Kind
    rows: int
    context: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.rows} rows over {self.context} positions"


class EagerSteps(Protocol):
    """What computes a step until it is compiled; see `infer.runners.select.Runner`."""

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Logits of one step."""

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """The most likely tokens of several steps."""


StepFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Compiler = Callable[[StepFunction, tuple[Tensor, ...]], StepFunction]


@dataclass
class _Step:
    """A compiled bucket with the tensors that its calls read; on a GPU, its graph.

    Attributes:
        kind: of the step; in a decode step the logits of all rows are wanted.
        tokens, slots, positions: (rows,) int64.
        wanted: (wanted,) int64.
        logits: (wanted, V) fp32 of the last call.
        calls: how often it has run.
    """

    kind: Kind
    function: StepFunction
    tokens: Tensor
    slots: Tensor
    positions: Tensor
    wanted: Tensor
    logits: Tensor | None = None
    calls: int = 0
    graph: Any = field(default=None, repr=False)

    def fill(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor | None = None) -> None:
        """Sets what the next call reads, padded with copies of the last row."""
        for buffer, given in ((self.tokens, tokens), (self.slots, slots), (self.positions, positions)):
            buffer.copy_(_padded(given, len(buffer)), non_blocking=True)
        if wanted is not None:
            self.wanted.copy_(_padded(wanted, len(self.wanted)), non_blocking=True)

    def run(self) -> Tensor:
        """One call; each row's most likely token becomes its next one when it decodes. Gives `logits`."""
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens.is_cuda and self.calls > 1:
            self._capture()
        else:
            self._once()
        assert self.logits is not None
        return self.logits

    def _once(self) -> None:
        self.logits, following = self.function(self.tokens, self.slots, self.positions, self.wanted)
        if self.kind == "decode":
            self.tokens.copy_(following)
            self.positions.add_(1)

    def _capture(self) -> None:
        """Capturing computes nothing, so that the replay behind it is this call's computation."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._once()
        graph.replay()
        self.graph = graph


class CompiledRunner:
    """See the module and `infer.runners.select.Runner`.

    The model must stay as it is: after its weights were replaced (`.to`, `quantize`), make another one.

    Args:
        model: on any device that Inductor knows.
        cache: on the model's device.
        eager: the modules as they are, over the same cache.
        background: compile in a thread; else when a bucket is first asked for, which then takes that long.
        compiler: gives a step function for inputs like these, without running it; None takes Inductor's.

    Attributes:
        compiles: how often each bucket was compiled; more than once never happens.
        faults: buckets that could not be compiled, and why; torch's modules compute them.
        compiled_steps, eager_steps: steps computed so far, by whom.
    """

    can_greedy = True
    own_threads = False
    batch_invariant = False

    def __init__(
        self,
        model: OmniModel,
        cache: SlotCache,
        eager: EagerSteps,
        *,
        background: bool = True,
        compiler: Compiler | None = None,
    ) -> None:
        self.compiles: Counter[Bucket] = Counter()
        self.faults: dict[Bucket, str] = {}
        self.compiled_steps = 0
        self.eager_steps = 0
        self._cache = cache
        self._eager = eager
        self._background = background
        self._compiler = _without_running if compiler is None else compiler
        self._steps: dict[Bucket, _Step] = {}
        self._asked: set[Bucket] = set()
        self._queue: deque[Bucket] = deque()
        self._idle = threading.Condition()
        self._working = False
        self._warned = 0
        # Its own modules over the same weights: the model's mode may change while a step is traced, and the kernels
        # of int8 layers that are best inside a compiled step are others.
        self._thinker = copy_for_compiling(model.thinker).eval()

    @property
    def note(self) -> str:
        """What is compiled and what could not be, for the log."""
        steps = list(self._steps)
        names = f" ({', '.join(map(str, steps))})" if steps else ""
        faults = [f"{bucket}: {reason}" for bucket, reason in list(self.faults.items())]
        left = len(self._asked) - len(steps) - len(faults)
        return "; ".join([f"{len(steps)} steps compiled{names}, {left} to come", *faults])

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """See `Runner`."""
        plan = self._plan(slots, positions, wanted)
        if plan is None:
            self.eager_steps += 1
            return self._eager.forward(tokens, slots, positions, wanted)
        self.compiled_steps += 1
        device = self._cache.device
        places, parts = [], []
        for step, rows, asked in plan:
            own = wanted[asked]
            inside = torch.searchsorted(rows, own) if step.kind == "prefill" and len(own) else None
            step.fill(tokens[rows], slots[rows], positions[rows], inside)
            logits = step.run()
            if len(asked):
                places.append(asked)
                logits = logits[: len(asked)]
                # A graph writes its next logits to the same place.
                parts.append(logits.clone() if step.graph is not None else logits)
        if len(parts) == 1:
            return parts[0]
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order.to(device)]

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """See `Runner`."""
        step = self._take("decode", len(tokens), int(positions.max()) + steps, len(tokens))
        if step is None:
            self.eager_steps += steps
            return self._eager.greedy(tokens, slots, positions, steps, stop)
        step.fill(tokens, slots, positions)
        out = []
        for _ in range(steps):
            step.run()
            out.append(step.tokens[: len(tokens)].clone())
            if stop is not None and stop[0]:
                break
        self.compiled_steps += len(out)
        return torch.stack(out, dim=1).cpu()

    def prepare(self, batch: int, length: int) -> None:
        """Compiles what decoding `batch` rows up to `length` tokens needs, and waits for it."""
        for context in sorted({_power(n, _LEAST_CONTEXT) for n in range(1, length + 1)}):
            self._take("decode", batch, min(context, self._cache.capacity), batch)
        self.wait()

    def wait(self) -> None:
        """Returns once nothing is left to compile."""
        with self._idle:
            self._idle.wait_for(lambda: not self._working)

    # -- which buckets --------------------------------------------------------------------------------------

    def _plan(self, slots: Tensor, positions: Tensor, wanted: Tensor) -> list[tuple[_Step, Tensor, Tensor]] | None:
        """The compiled calls of a step: each with its rows of the batch and its places in `wanted`.

        None where the modules compute it: a bucket is missing, or there are too many chunks.
        """
        spans = find_spans(slots, positions)
        chunks = [span for span in spans if span.end - span.begin > 1]
        singles = [span for span in spans if span.end - span.begin == 1]
        if len(chunks) > _MOST_CHUNKS or len({span.slot for span in spans}) < len(spans):
            return None
        plan: list[tuple[_Step | None, Tensor, Tensor]] = []
        if singles:
            rows = torch.tensor([span.begin for span in singles])
            step = self._take("decode", len(rows), max(span.length for span in singles), len(rows))
            asked = torch.isin(wanted, rows).nonzero().flatten()
            if len(asked) != len(rows):  # the logits of every row are computed; take those that are wanted
                return None
            plan.append((step, rows, asked))
        for span in chunks:
            asked = ((wanted >= span.begin) & (wanted < span.end)).nonzero().flatten()
            plan.append((self._chunk(span, len(asked)), torch.arange(span.begin, span.end), asked))
        ready = [(step, rows, asked) for step, rows, asked in plan if step is not None]
        return ready if len(ready) == len(plan) else None

    def _chunk(self, span: Span, wanted: int) -> _Step | None:
        count = span.end - span.begin
        if wanted > 1 and count > _MOST_WANTED:
            return None
        return self._take("prefill", count, span.length, wanted)

    def _take(self, kind: Kind, rows: int, context: int, wanted: int) -> _Step | None:
        """A compiled step that has room for all of this; asks for the fitting one where there is none yet."""
        B = min(_power(rows), self._cache.slots) if kind == "decode" else _power(rows, _LEAST_CHUNK)
        C = min(_power(context, _LEAST_CONTEXT), self._cache.capacity)
        right = Bucket(kind, B, C, B if kind == "decode" or wanted > 1 else 1)
        if right not in self._asked:
            self._ask(right)
        self._tell()
        step = self._steps.get(right)
        if step is not None:
            return step
        larger = [
            bucket
            for bucket in list(self._steps)
            if bucket.kind == kind
            and B <= bucket.rows <= _WASTE * B
            and C <= bucket.context <= _WASTE * C
            and (bucket.wanted == 1) == (right.wanted == 1)
        ]
        return self._steps[min(larger, key=lambda b: b.rows * b.context)] if larger else None

    # -- compiling ------------------------------------------------------------------------------------------

    def _ask(self, bucket: Bucket) -> None:
        self._asked.add(bucket)
        with self._idle:
            self._queue.append(bucket)
            if self._working:
                return
            self._working = True
        if self._background:
            threading.Thread(target=self._work, name="muomni-compile", daemon=True).start()
        else:
            self._work()

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._queue:
                    self._working = False
                    self._idle.notify_all()
                    return
                bucket = self._queue.popleft()
            try:
                self._steps[bucket] = self._compile(bucket)
            except Exception as error:  # noqa: BLE001 - told by `note`; the modules compute this bucket
                self.faults[bucket] = first_line(error)

    @torch.inference_mode()
    def _compile(self, bucket: Bucket) -> _Step:
        self.compiles[bucket] += 1
        device = self._cache.device
        thinker, cache, context = self._thinker, self._cache, bucket.context

        def step(tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            return run_step(thinker, cache, context, bucket.kind == "decode", tokens, slots, positions, wanted)

        tokens, slots, positions = (on_device([0] * bucket.rows, torch.int64, device) for _ in range(3))
        wanted = on_device(list(range(bucket.wanted)), torch.int64, device)
        function = self._compiler(step, (tokens, slots, positions, wanted))
        return _Step(bucket.kind, function, tokens, slots, positions, wanted)

    def _tell(self) -> None:
        if len(self.faults) > self._warned:
            self._warned = len(self.faults)
            warnings.warn(f"compiled steps: {self.note}; torch's modules compute those", stacklevel=2)


def _without_running(step: StepFunction, inputs: tuple[Tensor, ...]) -> StepFunction:
    """`step` compiled for inputs like these; a run would write into slots that are in use."""
    from torch._dynamo.aot_compile_types import SerializableCallable
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    class Compiled(SerializableCallable):
        def __init__(self, function: Callable[..., Any]) -> None:
            self._function = function

        def __call__(self, *args: Any) -> Any:
            return self._function(*args)

        @classmethod
        def serialize_compile_artifacts(cls, fn: Any) -> bytes:
            raise NotImplementedError("Inductor's cache on disk keeps the code")

        @classmethod
        def deserialize_compile_artifacts(cls, data: bytes) -> Any:
            raise NotImplementedError("Inductor's cache on disk keeps the code")

    # Compiling ahead of time makes bundles to be saved by hand and goes past Inductor's cache on disk.
    usual = {
        "strict_autograd_cache": False,
        "bypass_autograd_cache_key": False,
        "bundled_autograd_cache": False,
        "force_autograd_cache": False,
    }

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Compiled:
        with config.patch(usual):
            return Compiled(cast("Callable[..., Any]", compile_fx(graph, examples)))

    function = torch.compile(step, fullgraph=True, dynamic=False, backend=backend).aot_compile((inputs, {}))  # type: ignore[attr-defined]
    # What it guards (shapes, the mode of the thread) is fixed by the bucket.
    function.disable_guard_check()
    return cast("StepFunction", function)


def why_not(cache: SlotCache) -> str | None:
    """What keeps the steps from being compiled here; None when nothing does."""
    from muomni.accel.compile.blocks import what_is_missing

    return what_is_missing(cache.device)


def _padded(given: Tensor, count: int) -> Tensor:
    """(count,) with copies of the last element behind the others."""
    return given if len(given) == count else torch.cat((given, given[-1:].expand(count - len(given))))


def _power(number: int, least: int = 1) -> int:
    """The least power of two that is neither below `number` nor below `least`, a power of two."""
    return max(least, 1 << (number - 1).bit_length())
