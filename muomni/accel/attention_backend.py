"""Which attention a model computes with: chosen once, tried once, said once, set from outside.

The backends are in `ops.attention`. Before a backend with a kernel of its own is taken, it computes a small
case forward and backward on the device and is compared with the definition, so that a kernel that is
missing, does not take the head size or is wrong there shows before training and not in it.
"""

import importlib.machinery
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from muomni.errors import ConfigError, first_line
from muomni.model.encoders.layers import ATTENTIONS
from muomni.ops.attention import AttentionFunction, Segments, attention_reference, flash_attn, flex, sdpa, varlen

Backend = Literal["sdpa", "varlen", "flash_attn", "flex", "reference"]
BackendName = Literal["auto", "sdpa", "varlen", "flash_attn", "flex", "reference"]


@dataclass(frozen=True)
class AttentionChoice:
    """What was taken.

    Attributes:
        backend: its name.
        reason: why, for the log.
        attend: the function.
        registered: flash-attention 3 or 4 under its name in torch's registry, to be activated; it then
            serves this whole process.
    """

    backend: Backend
    reason: str
    attend: AttentionFunction
    registered: str | None = None


def pick_attention(
    name: BackendName, device: torch.device, dtype: torch.dtype, head_dim: int, *encoders: int
) -> AttentionChoice:
    """`auto` takes torch's varlen kernel on a GPU where it works, else SDPA.

    flash-attn and FlexAttention are taken only when named: neither has been measured to be faster here.

    Args:
        name: a backend, or `auto`.
        device: where the model trains.
        dtype: in which attention computes, autocast's.
        head_dim: of the Thinker.
        encoders: of each encoder, whose attention is not causal; the backend has to serve them too.

    Raises:
        ConfigError: the named backend is missing or cannot train with this device, dtype and head size.
    """
    if name == "auto":
        if device.type != "cuda":
            return AttentionChoice(
                "sdpa", _WHAT_SDPA_IS.get(device.type, f"what torch has for {device.type}"), sdpa.attention
            )
        declined = _why_not_any("varlen", device, dtype, head_dim, *encoders)
        declined = declined or _fails_any(varlen.attention, device, dtype, head_dim, *encoders)
        if declined is None:
            return AttentionChoice("varlen", "torch's flash kernel for packed documents works here", varlen.attention)
        return AttentionChoice("sdpa", f"varlen is out, {declined}", sdpa.attention)
    declined = _why_not_any(name, device, dtype, head_dim, *encoders)
    if declined is None:
        choice = _named(name, device)
        declined = _tried(choice, device, dtype, head_dim, *encoders)
        if declined is None:
            return choice
    sizes = (head_dim, *encoders)
    here = [other for other in get_args(Backend) if other != name and not _why_not_any(other, device, dtype, *sizes)]
    raise ConfigError(f'attention = "{name}": {declined}; here: {", ".join(here)}, or "auto"')


def apply(model: nn.Module, choice: AttentionChoice) -> None:
    """Sets the function on every attention layer of `model`."""
    if choice.registered is not None:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl(choice.registered)
    for module in model.modules():
        if isinstance(module, ATTENTIONS):
            module.attend = choice.attend


_WHAT_SDPA_IS = {
    "cpu": "document by document; blocks of matrix products in bf16, torch's flash kernel for CPUs in fp32"
}
_SIMPLE: dict[Backend, AttentionFunction] = {
    "sdpa": sdpa.attention,
    "varlen": varlen.attention,
    "flex": flex.attention,
    "reference": attention_reference,
}


def _named(name: Backend, device: torch.device) -> AttentionChoice:
    if name != "flash_attn":
        return AttentionChoice(name, "as asked", _SIMPLE[name])
    version = _installed_flash(device)
    if version == "FA2":
        return AttentionChoice(name, "as asked: the flash-attn 2 package", flash_attn.attention)
    return AttentionChoice(name, f"as asked: {version} through torch's registry", varlen.attention, version)


def _why_not(name: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:  # noqa: PLR0911
    """What is known without running anything; None when nothing speaks against the backend."""
    if name in ("sdpa", "reference"):
        return None
    if name == "flex":
        if device.type != "cuda":
            return f"FlexAttention has no backward pass on {device.type}"
        return None if find_spec("triton") else "FlexAttention needs Triton, which is not installed"
    if device.type != "cuda":
        return f"its kernels are for NVIDIA GPUs, and the device is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"its kernels need SM80 or newer, and the GPU is SM{major}{minor}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels compute in bf16 or fp16, and the precision is {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > 256:
        return f"its kernels take head sizes that are multiples of 8 up to 256, and head_dim is {head_dim}"
    if name == "flash_attn" and _installed_flash(device) is None:
        return "no flash-attn 2, 3 or 4 for this GPU is installed"
    return None


def _why_not_any(name: Backend, device: torch.device, dtype: torch.dtype, *head_dims: int) -> str | None:
    """`_why_not` of the first head size for which there is a reason."""
    found = (_why_not(name, device, dtype, head_dim) for head_dim in head_dims)
    return next((reason for reason in found if reason is not None), None)


def _installed_flash(device: torch.device) -> Literal["FA2", "FA3", "FA4"] | None:
    """The newest flash-attention that is installed, made for this GPU and known to torch, without importing it."""
    import torch.nn.attention

    known: list[str] = getattr(torch.nn.attention, "list_flash_attention_impls", list)()
    major, _ = torch.cuda.get_device_capability(device)
    # flash-attn 4 lives inside the package of 2, or in its place.
    package = find_spec("flash_attn")
    inside = list(package.submodule_search_locations or ()) if package else []
    if "FA4" in known and major in (9, 10) and importlib.machinery.PathFinder.find_spec("cute", inside):
        return "FA4"
    if "FA3" in known and major == 9 and find_spec("flash_attn_interface"):
        return "FA3"
    if importlib.machinery.PathFinder.find_spec("flash_attn_interface", inside):
        return "FA2"
    return None


def _tried(choice: AttentionChoice, device: torch.device, dtype: torch.dtype, *head_dims: int) -> str | None:
    if choice.backend in ("sdpa", "reference"):
        return None
    if choice.registered is None:
        return _fails_any(choice.attend, device, dtype, *head_dims)
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

    try:
        activate_flash_attention_impl(choice.registered)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{choice.registered} does not load: {first_line(error)}"
    try:
        return _fails_any(choice.attend, device, dtype, *head_dims)
    finally:
        restore_flash_attention_impl()


def _fails_any(
    attend: AttentionFunction, device: torch.device, dtype: torch.dtype, head_dim: int, *encoders: int
) -> str | None:
    """`_fails` of the Thinker's attention, then of the encoders'."""
    found = (_fails(attend, device, dtype, size, False) for size in dict.fromkeys(encoders))
    return _fails(attend, device, dtype, head_dim) or next((reason for reason in found if reason is not None), None)


def _fails(
    attend: AttentionFunction, device: torch.device, dtype: torch.dtype, head_dim: int, causal: bool = True
) -> str | None:
    """Computes documents of 5, 1 and 130 tokens with grouped heads, forward and backward; None when right.

    Right is an error of at most twice that of the definition in the same dtype, and one rounding.
    """
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 136, 2, head_dim), (1, 136, 1, head_dim), (1, 136, 1, head_dim), (1, 136, 2, head_dim))
    low = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    segments = Segments(torch.tensor([0, 5, 6, 136], dtype=torch.int32, device=device), 130).rounded(136)
    try:
        found = _results(attend, low, segments, causal)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return f"a small case fails: {first_line(error)}"
    exact = _results(attention_reference, [x.double() for x in low], segments, causal)
    plain = _results(attention_reference, low, segments, causal)
    for got, rough, right in zip(found, plain, exact, strict=True):
        allowed = 2 * (rough - right).abs().max() + right.abs().max() * torch.finfo(dtype).eps
        # Written so that a result that is not a number fails.
        if not bool((got - right).abs().max() <= allowed):
            return "a small case comes out wrong"
    return None


def _results(
    attend: Callable[..., Tensor], inputs: list[Tensor], segments: Segments, causal: bool = True
) -> list[Tensor]:
    """The output and the gradients of q, k, v; the last input is the gradient that comes in."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    with torch.enable_grad():
        out = attend(*leaves, segments, causal=causal)
        return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]
