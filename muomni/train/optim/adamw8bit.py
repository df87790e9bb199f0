"""AdamW whose two moments are kept in 8 bits a number: a quarter of AdamW's optimizer memory.

Moments are cut into blocks of 256 numbers; a block keeps its largest magnitude in fp32 and an 8-bit code of
each number, from a table that is finer near zero (Dettmers et al., "8-bit optimizers via block-wise
quantization", arXiv:2110.02861). Tables and quantisation are torchao's. The step is our own, because that of
`torchao.optim.AdamW8bit` can neither divide by a gradient scale nor leave out a step without asking the host;
on steps that are taken the two agree, see tests/train/optim/test_adamw8bit.py. They also share a weakness: a second
moment below about 1e-7 of the largest one in its block becomes zero, and where a gradient is that small against
its neighbours' for many steps, its weight can move many times too far.

It needs a compiler: without `torch.compile` each block would pass through some fifty temporary tensors.
One compilation serves all matrices, of about 10 s. On a CPU a step costs about 35 ns a parameter and thread,
ten times that of fused AdamW: it saves memory, not time.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.compile.blocks import what_is_missing
from muomni.errors import ConfigError

BLOCK = 256
SMALLEST = 4096  # parameters with fewer numbers are left to AdamW, as in torchao: they have nothing to save


def check_adam8bit(device: torch.device) -> None:
    """Finds out, without allocating anything, whether 8-bit AdamW works here.

    Raises:
        ConfigError: torchao or a compiler is missing.
    """
    if find_spec("torchao") is None:
        raise ConfigError(
            'optimizer.name = "adamw8bit": torchao is not installed; pip install \'muomni[lowbit]\', or take "adamw"'
        )
    missing = what_is_missing(device)
    if missing:
        raise ConfigError(f'optimizer.name = "adamw8bit" computes through torch.compile: {missing}; or take "adamw"')


def fits(parameter: Tensor) -> bool:
    """Whether a parameter can be cut into blocks and is large enough."""
    return parameter.numel() >= SMALLEST and parameter.numel() % BLOCK == 0 and parameter.is_contiguous()


class AdamW8bit(Optimizer):
    """See the module. Set `grad_scale` and `found_inf` as on torch's fused optimizers.

    A parameter's state is six plain tensors, so that it can be stored anywhere: `step` (scalar, fp32), and for
    both moments `_codes` (blocks, 256) uint8 and `_scale` (blocks,) fp32. The table of a code's value is
    kept with them, (256,) fp32, so that a stored state does not change its meaning with torchao's version.

    Args:
        params: parameters that `fits` accepts, plain or as groups.
        lr: a tensor on the parameters' device, or a number.
        betas, eps, weight_decay: as in AdamW.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: Tensor | float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if not fits(parameter):
                    shape = tuple(parameter.shape)
                    raise ValueError(f"8-bit AdamW takes contiguous multiples of {BLOCK} numbers, not {shape}")
        self._tables = _tables()
        self._update = torch.compile(_make_update(), fullgraph=True, dynamic=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; where `found_inf` is 1 neither weights nor state change.

        Args:
            closure: not taken; evaluating it again would need another backward pass.
        """
        if closure is not None:
            raise ValueError("AdamW8bit takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._one(parameter, parameter.grad, group)

    def _one(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        device = parameter.device
        state = self._state(parameter)
        lr = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        scale = torch.ones((), device=device) if self.grad_scale is None else self.grad_scale
        bad = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
        self._update(
            parameter.detach().view(-1, BLOCK),
            grad.contiguous().view(-1, BLOCK),
            state["step"],
            (state["exp_avg_codes"], state["exp_avg_scale"], state["exp_avg_table"]),
            (state["exp_avg_sq_codes"], state["exp_avg_sq_scale"], state["exp_avg_sq_table"]),
            lr,
            1 - lr * group["weight_decay"],
            scale,
            bad > 0,
            group["betas"],
            group["eps"],
        )

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            device, blocks = parameter.device, parameter.numel() // BLOCK
            state["step"] = torch.zeros((), device=device)
            for name, table in zip(("exp_avg", "exp_avg_sq"), self._tables, strict=True):
                # Zero is not code 0. With a scale of 0 any code means 0, and the first step replaces both.
                state[f"{name}_codes"] = torch.zeros(blocks, BLOCK, dtype=torch.uint8, device=device)
                state[f"{name}_scale"] = torch.zeros(blocks, device=device)
                state[f"{name}_table"] = table.to(device, copy=True)
        return state


Moment = tuple[Tensor, Tensor, Tensor]


def _tables() -> tuple[Tensor, Tensor]:
    """What the 256 codes mean: of the first moment, which has a sign, and of the second."""
    from torchao.optim.quant_utils import create_dynamic_map

    signed, unsigned = (torch.tensor(create_dynamic_map(signed=s), dtype=torch.float32) for s in (True, False))
    return signed, unsigned


def _make_update() -> Callable[..., None]:
    """The step of one parameter, to be compiled. Inside, torchao's functions are in reach of the compiler."""
    from torchao.optim.quant_utils import dequant_with_qmap, quantize_8bit_with_qmap, scale_tensor

    def update(
        parameter: Tensor,
        grad: Tensor,
        step: Tensor,
        first: Moment,
        second: Moment,
        lr: Tensor,
        keep: Tensor,
        grad_scale: Tensor,
        skipped: Tensor,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        g = grad.float() / grad_scale
        count = step + 1
        averages = []
        for (codes, scale, table), beta, new in zip((first, second), betas, (g, g.square()), strict=True):
            averages.append(dequant_with_qmap(codes, table, scale).lerp(new, 1 - beta))
        mean, square = averages
        size = square.sqrt() / (1 - betas[1] ** count).sqrt() + eps
        stepped = parameter.float() * keep - lr * (mean / (1 - betas[0] ** count)) / size
        # A skipped step writes back what was there: that costs nothing, all of it is one pass over memory.
        for (codes, scale, table), average in zip((first, second), averages, strict=True):
            scaled, new_scale = scale_tensor(average, BLOCK)
            codes.copy_(torch.where(skipped, codes, quantize_8bit_with_qmap(scaled, table)))
            scale.copy_(torch.where(skipped, scale, new_scale))
        parameter.copy_(torch.where(skipped, parameter, stepped))
        step.copy_(torch.where(skipped, step, count))

    return update
