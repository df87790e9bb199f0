"""Runs torch code without its numbers and without its memory, and writes down what memory it would ask for.

Tensors are torch's fake ones: they have shape, dtype and device, and operations on them only find out the shapes of
results. So what is seen is the code that really runs, with what autograd keeps and when it lets go of it; nothing
has to be modelled beside it. Not seen is what an operation uses inside: kernels in C++ (little, and not known), and
our attention on CPUs, which is run on fake tensors too.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from muomni.errors import ForecastError, first_line
from muomni.ops.attention import cpu_blocked, cpu_flash

# Bytes of a tensor itself and of what autograd notes of the operation that made it: small, but they lie between
# blocks, and decide which gaps are of use.
TENSOR = 800
# Bytes that stay with the process for every shape a matrix product meets, in fp32 and in low precision, and for any
# other operation.
PRODUCT, OTHER = {False: 64 * 1024, True: 256 * 1024}, 4 * 1024
_PRODUCTS = frozenset({"aten::mm", "aten::mm.out", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::baddbmm"})
# Changes tensors where they are, and makes none.
_IN_PLACE = frozenset({"aten::_fused_adamw_", "aten::_fused_adamw_.tensor_lr"})


# Number of a block and its bytes; 0 bytes free it.
Event = tuple[int, int]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every storage that comes and goes while it is entered.

    Args:
        longest: tokens of the longest document, for what attention uses inside.

    Attributes:
        events: in order; a storage is a number.
        shapes: of the tensor that a storage was made for.
        copied: storages that hold another one in another dtype: that one's number.
        kernels: storages that are none: what operations keep once they have met operands of some shapes.
        objects: storages that are none: tensors themselves.
        phase_of: says what is being done; kept with each storage in `phases`.
    """

    def __init__(self, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.longest = longest
        self.events: list[Event] = []
        self.shapes: list[tuple[int, ...]] = []
        self.copied: dict[int, int] = {}
        self.phase_of: Callable[[], str] = str
        self.phases: list[str] = []
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.kernels: set[int] = set()
        self.objects: set[int] = set()
        self._met: set[Any] = set()
        self._tensors: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:  # two calls in three
            return args[0].fake_device if isinstance(args[0], FakeTensor) else function(*args)
        name = function.name() if hasattr(function, "name") else str(function)
        if name == "aten::_local_scalar_dense":  # what a number would be is not known: any will do
            return 1.0 if args[0].is_floating_point() else 0
        if name == "aten::nonzero":  # every token teaches
            return self._seen(args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64))
        self._first_time(name, args)
        if name in _IN_PLACE:  # torch knows no shapes for it, and would take it with real tensors instead
            return None
        inside = _INSIDE.get(name)
        if inside is not None:
            with self:
                inside(self.longest, *args)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._seen(tensor)
        if name == "aten::_to_copy":
            number, original = self.number(result), self.number(args[0])
            if number is not None and original is not None and number != original:
                self.copied[number] = original
        return result

    def _first_time(self, name: str, args: Any) -> None:
        """What an operation keeps once it has met operands of these shapes: code that was compiled, plans, buffers."""
        shapes = tuple((x.dtype, tuple(x.shape)) for x in tree_iter(args) if isinstance(x, Tensor))
        if (name, shapes) in self._met:
            return
        self._met.add((name, shapes))
        number = len(self.shapes)
        self.shapes.append(())
        self.phases.append(self.phase_of())
        self.kernels.add(number)
        low = name in _PRODUCTS and any(dtype.itemsize < 4 for dtype, _ in shapes)
        self.events.append((number, PRODUCT[low] if name in _PRODUCTS else OTHER))

    def number(self, tensor: Tensor) -> int | None:
        """Of a tensor's storage; None where it was not made while this was entered."""
        found = self._known.get(tensor.untyped_storage()._cdata)  # noqa: SLF001 - nothing public names a storage
        return None if found is None or found[0]() is None else found[1]

    def _seen(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size and self.number(tensor) is None:
            number, held = self._block(storage, size, tuple(tensor.shape))
            self._known[storage._cdata] = held, number  # noqa: SLF001
        if id(tensor) not in self._tensors:
            number, self._tensors[id(tensor)] = self._block(tensor, TENSOR, (), id(tensor))
            self.objects.add(number)
        return tensor

    def _block(
        self, what: Any, size: int, shape: tuple[int, ...], key: int | None = None
    ) -> tuple[int, weakref.ref[Any]]:
        """A block that lives as long as an object."""
        number = len(self.shapes)
        self.shapes.append(shape)
        self.phases.append(self.phase_of())
        self.events.append((number, size))

        def freed(_: Any) -> None:
            self.events.append((number, 0))
            if key is not None:
                del self._tensors[key]

        return number, weakref.ref(what, freed)


@contextmanager
def dry_run(longest: int) -> Iterator[Recorder]:
    """Inside, every tensor is a fake one. Nothing real may go in.

    Raises:
        ForecastError: the code asks for something that only real tensors have.
    """
    recorder = Recorder(longest)
    try:
        with FakeTensorMode(allow_fallback_kernels=False), recorder:
            yield recorder
    except (RuntimeError, NotImplementedError) as error:
        first = first_line(error)
        raise ForecastError(f"cannot be run without its data: {first}") from error


def _attention(longest: int, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> None:
    q, k, v = q[:longest], k[:longest], v[:longest]
    if q.dtype in cpu_flash.LOW:
        cpu_blocked.blocked_forward(q, k, v)
    else:
        cpu_flash.flash_forward(_heads_first(q), _heads_first(k), _heads_first(v), True)


def _attention_backward(
    longest: int, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *_: Any
) -> None:
    grad, q, k, v, out = (x[:longest] for x in (grad, q, k, v, out))
    if q.dtype in cpu_flash.LOW:
        cpu_blocked.blocked_backward(grad, q, k, v)
    else:
        grad, q, k, v, out, lse = (_heads_first(x) for x in (grad, q, k, v, out, lse[:longest]))
        cpu_flash.flash_backward(grad, q, k, v, out, lse, True)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]


# What operations of ours use inside, which is as much in Python as the rest.
_INSIDE: dict[str, Callable[..., None]] = {
    "muomni::varlen_cpu": _attention,
    "muomni::varlen_cpu_backward": _attention_backward,
    "muomni::bidirectional_cpu": _attention,
    "muomni::bidirectional_cpu_backward": _attention_backward,
}
