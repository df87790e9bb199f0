"""Several processes for one run, under `torchrun`: DDP, or FSDP2 where a model is too large for one device.

What is computed is the recipe's, however many processes there are: a step has `batch_size` ×
`gradient_accumulation_steps` rows in all, and of R processes number r takes rows r, r + R, r + 2R, ... of them,
in micro-batches of at most `batch_size`. So losses are those of one process but for rounding (and dropout, whose
random numbers each process draws for itself), a step's number gives its place in the data, and a run may go on
with another number of processes.

* `ddp`: each process holds the whole model. Gradients are averaged while the last micro-batch's backward pass
  runs (Li et al., "PyTorch Distributed", VLDB 2020).
* `fsdp`: weights, gradients and optimizer state are divided between the processes; a block's weights are gathered
  when it runs (Zhao et al., "PyTorch FSDP", arXiv:2304.11277). It costs half as much communication again. Between
  the micro-batches of a step the gradients stay whole; under autocast so do the low-precision copies of the
  weights from forward to backward pass, unless gradient checkpointing is `full`.

A process that ends takes the others with it: they meet on the host once a step, where a lost connection raises.
Ctrl-C at torchrun stops all of them after the same step and saves; torchrun waits 30 s for that before it kills
them (TORCH_ELASTIC_SHUTDOWN_TIMEOUT sets another time).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muomni.accel.step_config import StepConfig
from muomni.errors import ConfigError, TrainingError
from muomni.model import OmniModel
from muomni.model.encoders.layers import BLOCKS

Kind = Literal["off", "ddp", "fsdp"]
T = TypeVar("T")

# Others wait this long while process 0 tokenizes, samples or writes; nobody waits for a process that has ended.
_PATIENCE = timedelta(hours=24)
_START = "torchrun --nproc-per-node 2 -m muomni train RECIPE"


@dataclass(frozen=True)
class ParallelChoice:
    """What was decided.

    Attributes:
        kind: how the processes share the work; `off` for a single one.
        reason: why, for the log.
        rank, size: this process's number among all of them, and how many they are.
        local_rank: its number on this machine.
    """

    kind: Kind
    reason: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def take_device(self, device: torch.device) -> torch.device:
        """The one of the machine's devices that is this process's, made the current one."""
        if self.size > 1 and device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        return device


def choose(asked: Kind | Literal["auto"], device: torch.device, step: StepConfig, *, shrinks: bool) -> ParallelChoice:
    """`auto` is DDP where torchrun started several processes, else off.

    Args:
        asked: as in a recipe.
        device: the kind of device the run uses.
        step: whose rows are shared.
        shrinks: whether a step that runs out of memory is taken again in smaller micro-batches.

    Raises:
        ConfigError: the number of processes does not fit what was named, the rows of a step cannot be shared
            evenly, or another option does not work with several processes.
    """
    size = _environment("WORLD_SIZE", 1)
    if size == 1:
        if asked in ("ddp", "fsdp"):
            raise ConfigError(
                f'parallel = "{asked}": there is one process; start several with: {_START}; or say "auto"'
            )
        return ParallelChoice("off", "one process")
    if asked == "off":
        raise ConfigError(f'parallel = "off", but torchrun started {size} processes; say "auto", or start one')
    kind: Kind = "ddp" if asked == "auto" else asked
    if step.rows % size:
        raise ConfigError(
            f"batch_size × gradient_accumulation_steps = {step.rows} rows a step cannot be shared evenly by {size} "
            f"processes; make it a multiple of {size}"
        )
    if shrinks:
        raise ConfigError(
            f'on_oom = "shrink_micro_batch" works with one process only, and there are {size}: one that runs out of '
            'memory in the backward pass leaves the others waiting for its gradients; say "stop"'
        )
    local_rank = _environment("LOCAL_RANK", None)
    _check_device(device, size, local_rank)
    if kind == "fsdp" and step.compile == "full":
        raise ConfigError('compile = "full" does not go with parallel = "fsdp", which gathers weights between blocks; '
                          'say "blocks"')  # fmt: skip
    reason = "as asked" if asked != "auto" else f"torchrun started {size} processes"
    return ParallelChoice(kind, reason, _environment("RANK", None), size, local_rank)


def _environment(name: str, default: int | None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        raise ConfigError(
            f"the environment variable {name} is {value!r}, and several processes need a number there; "
            f"torchrun sets it: {_START}"
        ) from None


def _check_device(device: torch.device, size: int, local_rank: int) -> None:
    if not dist.is_available():
        raise ConfigError(f"{size} processes: this build of torch has no torch.distributed")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{size} processes: they work on cuda and cpu, and the device is {device.type}")
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start at most that many processes with --nproc-per-node"
        )


class Group:
    """The processes of a run and what they do together. With one process, nothing is sent and nothing changes.

    Every method that says "together" has to be called by all processes, in the same order.

    Args:
        choice: this process's place.
        host: connects the processes' hosts; None for a single one.
    """

    def __init__(self, choice: ParallelChoice, host: dist.ProcessGroup | None = None) -> None:
        self.kind = choice.kind
        self.rank = choice.rank
        self.size = choice.size
        self.local_rank = choice.local_rank
        self._host = host

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, log and progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Together: until all are here."""
        if self._host is not None:
            dist.barrier(group=self._host)

    def any(self, flag: bool) -> bool:
        """Together: whether one of the processes says so."""
        if self._host is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._host)
        return bool(flags[0])

    def gather(self, value: T) -> list[T]:
        """Together: everyone's value in the order of ranks, the same list for all."""
        if self._host is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """Together: what `make` gives process 0; the others do not call it."""
        if self._host is None:
            return make()
        values: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(values, src=0, group=self._host)
        return cast("T", values[0])

    def add(self, value: Tensor) -> Tensor:
        """Together: the sum over the processes, in place; the host does not wait for the device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def apply(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Together: the module to call in training, which is `model` itself but with DDP.

        Args:
            model: transformed in place by FSDP, which also moves it to the device, a block at a time.
            device: of this process.
        """
        if self.kind == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            ids = [device] if device.type == "cuda" else None
            # Buffers, which are the codec's, never change: they need not be sent again with every batch.
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)
        if self.kind == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (self.size,))
            for module in model.modules():
                if isinstance(module, BLOCKS):
                    fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)  # embedding, last norm and head
        return model

    @contextmanager
    def micro_batch(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-batch: gradients are sent in the last one of a step only.

        Args:
            module: as `apply` gave it.
            last: whether this is the last one.
        """
        if self.kind == "ddp" and not last:
            with module.no_sync():  # type: ignore[operator]
                yield
            return
        if self.kind == "fsdp":
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def settle(self, model: nn.Module) -> None:
        """After forward passes without a backward pass: FSDP's weights are divided again."""
        if self.kind == "fsdp":
            model.reshard()  # type: ignore[operator]

    def whole_model(self, model: OmniModel) -> OmniModel | None:
        """Together: a model with whole weights for process 0, None for the others where that costs a copy.

        With FSDP it is a copy on the host, else `model` itself.
        """
        if self.kind != "fsdp":
            return model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.is_main:
            return None
        with torch.device("meta"):
            copy = OmniModel(model.config)
        copy.load_state_dict(weights, assign=True)
        copy.thinker.tie_weights()
        return copy


def alone() -> Group:
    """A group of one process."""
    return Group(ParallelChoice("off", "one process"))


@contextmanager
def connect(choice: ParallelChoice, device: torch.device) -> Iterator[Group]:
    """Together: meets the other processes; parts from them at the end.

    Args:
        choice: as `choose` gave it.
        device: of this process.

    Raises:
        TrainingError: the others were not met, or one of them ended.
    """
    if choice.size == 1:
        yield Group(choice)
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        host = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"process {choice.rank} of {choice.size} did not meet the others: {error}") from error
    try:
        yield Group(choice, host)
    except RuntimeError as error:
        if not _peer_is_lost(error):
            raise
        raise TrainingError("another process of this run ended, so this one ends too; what it said is the reason") \
            from error  # fmt: skip
    # After an error the process ends: parting properly would wait for messages that never come.
    dist.destroy_process_group()


def _peer_is_lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo/transport" in text or "Connection closed by peer" in text


def local(tensor: Tensor) -> Tensor:
    """This process's part of a divided tensor, sharing its memory; any other tensor as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """Together: a divided tensor put together; any other tensor as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """Together: the tensor whose parts are laid out as those of `like`; `part` itself where that is not divided."""
    layout = _layout(like)
    if layout is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, *layout, run_check=False, shape=like.shape, stride=like.stride()).full_tensor()


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of the shape of `like`, on its device and divided as that is; sends nothing."""
    tensor, layout = tensor.to(like.device), _layout(like)
    if layout is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, *layout, src_data_rank=None)


def _layout(tensor: Any) -> tuple[Any, Any] | None:
    return (tensor.device_mesh, tensor.placements) if hasattr(tensor, "placements") else None
