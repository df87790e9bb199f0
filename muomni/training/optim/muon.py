"""Muon: momentum whose update is made orthogonal, for the hidden matrices.

A matrix's update is replaced by the nearest matrix with all singular values about one, computed by five
Newton-Schulz iterations (Jordan et al., https://kellerjordan.github.io/posts/muon/), scaled so
that its size is that of an AdamW update: 0.2 · √max(rows, columns) (Liu et al., "Muon is scalable for LLM
training", arXiv:2502.16982). A recipe's learning rate then serves both optimizers.

It costs six products of each matrix with itself a step, independent of the batch, and one buffer
instead of AdamW's two. `torch.optim.Muon` is the reference it is tested against; this one takes all
matrices of a shape in one batch, and like torch's fused optimizers it reads learning rate, gradient
scale and "found inf" from tensors, so that nothing waits for the device.

Where FSDP divides the matrices, momentum is kept in parts too, but an update has to be whole to be made
orthogonal: it is gathered in the iterations' dtype, and every process computes the same.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.distributed import divided, gathered, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U·Vᵀ of each matrix's singular value decomposition U·S·Vᵀ: singular values between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns), rows ≤ columns; bf16 is precise enough.

    Returns:
        (n, rows, columns) in the dtype given.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


class Muon(Optimizer):
    """See the module. Set `grad_scale` and `found_inf` as on torch's fused optimizers.

    Args:
        params: matrices, plain or as groups.
        lr: a tensor on the parameters' device, or a number.
        momentum: of the buffer; Nesterov's form is used.
        weight_decay: decoupled.
        dtype: of the iterations; bf16 where the hardware multiplies in it, else fp32.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: Tensor | float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices; a parameter has shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; where `found_inf` is 1 neither weights nor buffers change.

        Args:
            closure: not taken; evaluating it again would need another backward pass.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for alike in shapes.values():
                self._update(alike, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Matrices of one shape, up to transposition, together."""
        momentum: float = group["momentum"]
        buffers = [local(self._buffer(p)) for p in parameters]
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        if self.grad_scale is not None:
            torch._foreach_div_(grads, self.grad_scale)
        kept = [buffer.clone() for buffer in buffers] if self.found_inf is not None else []
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum)  # noqa: SLF001 - as in torch.optim
        tall = [p.shape[0] > p.shape[1] for p in parameters]
        whole = [gathered(u.to(self.dtype), p) for u, p in zip(updates, parameters, strict=True)]
        stacked = torch.stack([u.mT if t else u for u, t in zip(whole, tall, strict=True)])
        directions = orthogonalise(stacked)
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        lr = torch.as_tensor(group["lr"], device=directions.device)
        if self.found_inf is not None:
            bad = self.found_inf.bool()
            for buffer, old in zip(buffers, kept, strict=True):
                torch.where(bad, old, buffer, out=buffer)
            directions = torch.where(bad, 0.0, directions)
            lr = torch.where(bad, 0.0, lr)
        torch._foreach_mul_([local(p) for p in parameters], 1 - lr * group["weight_decay"])
        for parameter, direction, is_tall in zip(parameters, directions, tall, strict=True):
            own = local(divided(direction.mT if is_tall else direction, parameter))
            local(parameter).sub_(own.to(parameter.dtype) * (lr * scale))

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
