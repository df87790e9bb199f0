"""The Thinker: a dense Qwen3 decoder (arXiv:2505.09388).

Legend: B batch, T tokens, D hidden_size, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from muomni.config import ThinkerConfig
from muomni.model.int8_layers import tie
from muomni.model.kv_cache import Cache
from muomni.model.layers import Block, RMSNorm
from muomni.ops.attention import Segments
from muomni.ops.rope import rope_tables


class Thinker(nn.Module):
    """Token ids to hidden states. The output head is `head_weight`, the embedding itself when tied."""

    def __init__(self, config: ThinkerConfig) -> None:
        super().__init__()
        self.config = config
        # `model.int8_layers.to_int8` puts int8 layers in the place of these.
        # With a weight given, torch draws none: `init_weights` does, and on `meta` torch would load its compiler to.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.register_state_dict_post_hook(_leave_out_tied_head)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_tied_head)  # type: ignore[no-untyped-call]

    def tie_weights(self) -> None:
        """Makes the head the embedding, where the configuration says so; again after loading or `to_empty`."""
        if self.config.tie_word_embeddings:
            tie(self.lm_head, self.embed_tokens)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding now; a configuration says only how a model was made."""
        head, embedding = getattr(self.lm_head, "weight", None), getattr(self.embed_tokens, "weight", None)
        if not isinstance(head, Tensor) or not isinstance(embedding, Tensor):
            return False
        # `load_state_dict(assign=True)` makes two parameters of one memory.
        return head is embedding or (head.data_ptr() == embedding.data_ptr() != 0)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights; the two projections that end a residual branch are divided by √(2L) (GPT-2)."""
        std = self.config.initializer_range
        branch = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, branch if ends_branch else std, generator=generator)

    def forward(
        self,
        input_ids: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        cache: Cache | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """Runs the decoder.

        Args:
            input_ids: (B, T) int64; or else `inputs_embeds`.
            positions: (B, T) int64, or (3, B, T) of time, height and width where there are pictures; None counts on
                from the cache's length, or from 0.
            segments: documents of packed rows; not together with a cache.
            cache: holds the tokens before these and takes these in.
            inputs_embeds: (B, T, D) what stands for the tokens instead of their embeddings.
            layers: run the first so many blocks only; a cache then needs no more.

        Returns:
            (B, T, D) hidden states after the last norm; with `layers` those after that block, without the norm.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("the Thinker reads tokens or embeddings: give exactly one of input_ids and inputs_embeds")
        if cache is not None and segments is not None:
            raise ValueError("packed rows cannot be cached: give segments or a cache, not both")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + length, device=x.device)[None]
        rotation = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.layers if layers is None else self.layers[:layers]:
            x = block(x, rotation, segments, cache)
        if cache is not None:
            cache.advance(length)
        if layers is not None:
            return x
        hidden: Tensor = self.norm(x)
        return hidden


def _leave_out_tied_head(thinker: Thinker, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """A tied head is stored once, as the embedding: safetensors takes no tensor twice."""
    if thinker.is_tied:
        for name in ("weight", "scale"):
            state.pop(f"{prefix}lm_head.{name}", None)


def _add_tied_head(thinker: Thinker, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A state without a head has a tied one; a head of its own needs a place of its own."""
    # An adapter around the head has no `weight` there.
    names = {"weight", "scale"} & thinker.lm_head.state_dict().keys()
    given = {name: state.get(f"{prefix}embed_tokens.{name}") for name in names}
    heads = {name: state.get(f"{prefix}lm_head.{name}") for name in names}
    if all(head is None for head in heads.values()):
        if thinker.config.tie_word_embeddings:
            state |= {f"{prefix}lm_head.{name}": tensor for name, tensor in given.items() if tensor is not None}
    elif thinker.is_tied and not all(_equal(given[name], heads[name]) for name in names):
        for name in names:
            tensor = getattr(thinker.lm_head, name)
            setattr(thinker.lm_head, name, nn.Parameter(tensor.detach().clone(), tensor.requires_grad))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
