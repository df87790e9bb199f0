"""The runner for CPUs: a whole decoder step in one native call (`ops.native`), several in one when greedy.

It reads the model's weights and the cache in place, so it costs no memory of its own and may alternate with
the eager runner on the same request. Results of a token do not depend on the rest of the batch, bit by bit.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muomni.config import ThinkerConfig
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import WEIGHT_LAYERS, is_quantized, to_int8
from muomni.model.layers import MLP, Attention, Block, RMSNorm
from muomni.model.module_modes import redirected, unusual_tensor
from muomni.model.structure import differences
from muomni.model.talker import Talker
from muomni.model.thinker import Thinker
from muomni.ops.native import Decoder, DecoderWeights, LayerWeights, Library, Matrix, Unavailable, load
from muomni.ops.rope import rope_tables

# Of caches and of float weights.
FLOATS = (torch.float32, torch.bfloat16)
_KNOWN = (Thinker, nn.ModuleList, nn.ModuleDict, Block, Attention, MLP, RMSNorm, nn.Dropout, *WEIGHT_LAYERS)


class NativeRunner:
    """Computes steps of `model` over `cache`; see `infer.runners.select.Runner`. `make_native_runner` makes it.

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
        """See `Runner`."""
        return self._decoder.forward(tokens, slots, positions, wanted)

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """See `Runner`."""
        return self._decoder.greedy(tokens, slots, positions, steps, stop)


class NativeBackbone:
    """Computes frames of the Talker; see `infer.runners.select.Backbone`. The Talker's weights must stay as they are.

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
        """See `Backbone`."""
        return self._decoder.hidden(x.float(), slots, positions).to(x.dtype)


def make_native_runner(model: OmniModel, cache: SlotCache, threads: int | None = None) -> NativeRunner | Unavailable:
    """The native runner, or why there can be none. Compiles for some seconds the first time on a machine.

    Args:
        model: see `NativeRunner`.
        cache: on the CPU.
        threads: None takes torch's number.
    """
    reason = why_not(model, cache)
    if reason:
        return Unavailable(reason)
    library = load()
    if isinstance(library, Unavailable):
        return library
    return NativeRunner(library, model, cache, threads or torch.get_num_threads())


def why_not(model: OmniModel, cache: SlotCache) -> str | None:
    """What about the model or the cache the native decoder cannot do; None when it can do all of it."""
    if model.thinker.training and model.config.thinker.dropout > 0:
        return "the model is in training mode, with dropout"
    modules, config = model.thinker.named_modules(prefix="thinker"), model.config.thinker
    return _fault(model.device, cache, modules) or _unlike("thinker", model.thinker, lambda: Thinker(config))


def talker_why_not(talker: Talker, cache: SlotCache) -> str | None:
    """What about the Talker or the cache the native decoder cannot do; None when it can do all of it."""
    if type(talker) is not Talker or "backbone" in talker.__dict__:
        return f"the native decoder does not know a {type(talker).__name__}"
    parts = nn.ModuleDict({"layers": talker.layers, "norm": talker.norm})
    config = talker.config.backbone
    return _fault(talker.norm.weight.device, cache, parts.named_modules(prefix="talker")) or _unlike(
        "talker", parts, lambda: _backbone(config)
    )


def _backbone(config: ThinkerConfig) -> nn.ModuleDict:
    layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
    return nn.ModuleDict({"layers": layers, "norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})


def _fault(device: torch.device, cache: SlotCache, modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    if device.type != "cpu" or cache.device.type != "cpu":
        return f"the model is on {device}, the cache on {cache.device}: the native decoder is for CPUs"
    if cache.dtype not in FLOATS:
        return f"a cache of {cache.dtype}: the native decoder knows float32 and bfloat16"
    for name, module in modules:
        fault = _unknown_layer(module)
        if fault:
            return f"{name}: {fault}"
    return None


def _unlike(name: str, decoder: nn.Module, make: Callable[[], nn.Module]) -> str | None:
    """Where a decoder is not what its configuration makes: the native one computes what the configuration says."""
    with torch.device("meta"):
        expected = make()
    if is_quantized(decoder):
        to_int8(expected)
    problem = next(differences(decoder, expected), None)
    return None if problem is None else f"it is not what its configuration says: {name}.{problem}"


def _unknown_layer(module: nn.Module) -> str | None:
    """What about a module the native decoder cannot do; None when it can do all of it."""
    # Exact types: a subclass or a wrapper, such as LoRA's, computes something else.
    if type(module) not in _KNOWN:
        return f"the native decoder does not know a {type(module).__name__}"
    if (reason := redirected(module)) is not None:
        return f"{reason}, which only the eager model calls"
    reason = unusual_tensor(module)
    weight = getattr(module, "weight", None)
    if reason is None and isinstance(weight, Tensor):
        if getattr(module, "bias", None) is not None:
            reason = "it has a bias"
        elif weight.dtype not in (*FLOATS, torch.int8):
            reason = f"its weights are {weight.dtype}"
        elif not weight.is_contiguous():
            reason = "its weights are not contiguous"
    return reason


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
