"""The runner for CPUs: a whole decoder step in one native call (`ops.native`), several in one when greedy.

It reads the model's weights and the cache in place, so it costs no memory of its own and may alternate with
the eager runner on the same request. Results of a token do not depend on the rest of the batch, bit by bit.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from muomni.config import ThinkerConfig
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import WEIGHT_LAYERS
from muomni.model.layers import MLP, Attention, Block, RMSNorm
from muomni.model.talker import Talker
from muomni.model.thinker import Thinker
from muomni.ops.native import Decoder, DecoderWeights, LayerWeights, Library, Matrix, Unavailable, load
from muomni.ops.rope import rope_tables

_FLOATS = (torch.float32, torch.bfloat16)
_KNOWN = (Thinker, nn.ModuleList, Block, Attention, MLP, RMSNorm, nn.Dropout, *WEIGHT_LAYERS)


class NativeRunner:
    """Computes steps of `model` over `cache`; see `infer.runners.base.Runner`. `make_native_runner` makes it.

    The model must stay as it is: after its weights were replaced (`.to`, `quantize`), make another one.

    Args:
        library: the compiled decoder.
        model, cache: that `why_not` finds no fault with.
        threads: that work on a step.
        int8_activations: see `ops.native.Decoder`.
    """

    can_greedy = True
    own_threads = True
    batch_invariant = True

    def __init__(
        self, library: Library, model: OmniModel, cache: SlotCache, threads: int, *, int8_activations: bool = True
    ) -> None:
        thinker = model.thinker
        self.library = library
        self.threads = threads
        self.note = f"{threads} threads"
        tables = _matrix(thinker.embed_tokens), _matrix(thinker.lm_head)
        weights = _weights(model.config.thinker, thinker.layers, thinker.norm, *tables)
        self._decoder = _decoder(library, model.config.thinker, weights, cache, threads, int8_activations)

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        return self._decoder.forward(tokens, slots, positions, wanted)

    def greedy(self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int) -> Tensor:
        return self._decoder.greedy(tokens, slots, positions, steps)


class NativeBackbone:
    """Computes frames of the Talker; see `infer.runners.base.Backbone`. The Talker's weights must stay as they are.

    Args:
        library: the compiled decoder.
        talker, cache: that `talker_why_not` finds no fault with.
        threads: that work on a frame.
    """

    own_threads = True

    def __init__(self, library: Library, talker: Talker, cache: SlotCache, threads: int) -> None:
        config = talker.config.backbone
        self.cache = cache
        self.note = f"{threads} threads"
        weights = _weights(config, talker.layers, talker.norm)
        self._decoder = _decoder(library, config, weights, cache, threads)

    def hidden(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        return self._decoder.hidden(x.float(), slots, positions).to(x.dtype)


def make_native_runner(model: OmniModel, cache: SlotCache, threads: int | None = None) -> NativeRunner | Unavailable:
    """The native runner, or why there can be none. Compiles for some seconds the first time on a machine.

    Args:
        threads: None takes torch's number.
    """
    reason = why_not(model, cache)
    if reason:
        return Unavailable(reason)
    library = load()
    if isinstance(library, Unavailable):
        return library
    try:
        return NativeRunner(library, model, cache, threads or torch.get_num_threads())
    except ValueError as error:  # layers that were changed: their shapes are not the configuration's
        return Unavailable(f"the native decoder cannot do this model: {error}")


def why_not(model: OmniModel, cache: SlotCache) -> str | None:
    """What about the model or the cache the native decoder cannot do; None when it can do all of it."""
    if model.thinker.training and model.config.thinker.dropout > 0:
        return "the model is in training mode, with dropout"
    return _fault(model.device, cache, model.thinker.named_modules(prefix="thinker"), model.config.thinker.rms_norm_eps)


def talker_why_not(talker: Talker, cache: SlotCache) -> str | None:
    """What about the Talker or the cache the native decoder cannot do; None when it can do all of it."""
    if type(talker) is not Talker or "backbone" in talker.__dict__:
        return f"the native decoder does not know a {type(talker).__name__}"
    modules = (*talker.layers.named_modules(prefix="talker.layers"), ("talker.norm", talker.norm))
    return _fault(talker.norm.weight.device, cache, modules, talker.config.backbone.rms_norm_eps)


def _fault(device: torch.device, cache: SlotCache, modules: Iterable[tuple[str, nn.Module]], eps: float) -> str | None:
    if device.type != "cpu" or cache.device.type != "cpu":
        return f"the model is on {device}, the cache on {cache.device}: the native decoder is for CPUs"
    if cache.dtype not in _FLOATS:
        return f"a cache of {cache.dtype}: the native decoder knows float32 and bfloat16"
    for name, module in modules:
        fault = _unknown_layer(module, eps)
        if fault:
            return f"{name}: {fault}"
    return None


def _unknown_layer(module: nn.Module, eps: float) -> str | None:
    """What about a module the native decoder cannot do; None when it can do all of it."""
    # Exact types: a subclass or a wrapper, such as LoRA's, computes something else.
    if type(module) not in _KNOWN:
        return f"the native decoder does not know a {type(module).__name__}"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which only the eager model calls"
    if "forward" in module.__dict__:
        return "its forward was replaced, which only the eager model calls"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if type(weight.data) is not Tensor or weight.layout != torch.strided:
        return f"its weights are a {type(weight.data).__name__} of layout {weight.layout}"
    if isinstance(module, RMSNorm) and module.eps != eps:
        return f"its eps is {module.eps}, and the configuration says {eps}"
    if getattr(module, "bias", None) is not None:
        return "it has a bias"
    if weight.dtype not in (*_FLOATS, torch.int8):
        return f"its weights are {weight.dtype}"
    return None if weight.is_contiguous() else "its weights are not contiguous"


def _decoder(
    library: Library,
    config: ThinkerConfig,
    weights: DecoderWeights,
    cache: SlotCache,
    threads: int,
    int8_activations: bool = True,
) -> Decoder:
    angles = rope_tables(torch.arange(cache.capacity)[None], config.head_dim, config.rope_theta, torch.float32)
    cos, sin = (table.reshape(cache.capacity, -1).contiguous() for table in angles)
    return Decoder(
        library, weights, cache.keys, cache.values, cos, sin, threads=threads, int8_activations=int8_activations
    )


def _weights(
    config: ThinkerConfig, layers: nn.ModuleList, norm: RMSNorm, embed: Matrix | None = None, head: Matrix | None = None
) -> DecoderWeights:
    return DecoderWeights(
        embed=embed,
        head=head,
        final_norm=_norm(norm),
        layers=tuple(_layer_weights(block) for block in layers if isinstance(block, Block)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
    )


def _layer_weights(block: Block) -> LayerWeights:
    """A block's weights as the native decoder reads them, in place."""
    attention, mlp = block.self_attn, block.mlp
    return LayerWeights(
        input_norm=_norm(block.input_layernorm),
        post_norm=_norm(block.post_attention_layernorm),
        q_norm=_norm(attention.q_norm),
        k_norm=_norm(attention.k_norm),
        q=_matrix(attention.q_proj),
        k=_matrix(attention.k_proj),
        v=_matrix(attention.v_proj),
        o=_matrix(attention.o_proj),
        gate=_matrix(mlp.gate_proj),
        up=_matrix(mlp.up_proj),
        down=_matrix(mlp.down_proj),
    )


def _matrix(module: nn.Module) -> Matrix:
    weight, scale = module.weight, getattr(module, "scale", None)
    assert isinstance(weight, Tensor)
    return Matrix(weight.detach(), scale)


def _norm(norm: RMSNorm) -> Tensor:
    return norm.weight.detach().float()
