"""The Talker: text and the Thinker's states in, codes of speech out.

It carries a pointer into the units of a sentence. Each frame it reads the text at the pointer and the codes of the
frame before, and predicts the codes of the frame and how many units the pointer moves; a class of its own ends the
sentence. Sentences do not see each other.

Legend: S sentences, U units, N tokens, F frames, K codebooks, V codebook_size, M steps, D hidden_size,
Dt width of the Thinker.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config.talker import TalkerConfig
from muomni.model.kv_cache import Cache
from muomni.model.layers import Block, RMSNorm
from muomni.model.talker.batch import SpeechBatch
from muomni.model.talker.codebook_heads import DepthPredictor, ParallelHeads, Pick
from muomni.model.talker.packing import Steps, lay_out_steps, lay_out_text
from muomni.model.talker.text_encoder import TextEncoder
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE
from muomni.ops.rope import rope_tables

# Embeddings of codes are drawn so many times as large as other weights: what they sum up to is then about as large as
# what the text and the state bring, which come out of a product.
_CODE_SCALE = 5.0


@dataclass(frozen=True)
class TalkerLosses:
    """What the Talker's mistakes cost, summed over frames; scalars in fp32 (fp64 for fp64).

    Attributes:
        codes: cross-entropy of the codes of a frame, the mean over its codebooks.
        moves: cross-entropy of the moves, that of the last frame of a sentence times `stop_weight`.
    """

    codes: Tensor
    moves: Tensor


class Talker(nn.Module):
    """See the module.

    Args:
        config: sizes.
        thinker_size: width of the Thinker's states, Dt.
    """

    def __init__(self, config: TalkerConfig, thinker_size: int) -> None:
        super().__init__()
        self.config = config
        K, V, D = config.num_codebooks, config.codebook_size, config.hidden_size
        self.text = TextEncoder(config, thinker_size)
        # All codebooks in one table; its last row stands for a code that there is not.
        self.embed_codes: nn.Module = nn.Embedding(K * V + 1, D, _weight=torch.empty(K * V + 1, D))
        voices = len(config.voices)
        self.embed_voices = nn.Embedding(voices, D, _weight=torch.empty(voices, D))
        backbone = config.backbone
        self.layers = nn.ModuleList(Block(backbone, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(D, config.rms_norm_eps)
        self.moves = nn.Linear(D, config.num_moves, bias=False)
        self.codes = DepthPredictor(config) if config.pattern == "depth" else ParallelHeads(config)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights; the projections that end a residual branch of the backbone are divided by √(2L) (GPT-2)."""
        std = self.config.initializer_range
        branch = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("depthwise.weight"):
                parameter.normal_(0.0, parameter.shape[0] ** -0.5, generator=generator)
            elif name.endswith("depthwise.bias"):
                parameter.zero_()
            elif name.endswith(".scale"):
                parameter.fill_(1 / self.config.text_layers)
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            elif "embed_codes" in name:
                parameter.normal_(0.0, _CODE_SCALE * std, generator=generator)
            elif name.startswith("text.") and ".layers." in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                ends_branch = name.endswith(("o_proj.weight", "mlp.down_proj.weight"))
                parameter.normal_(0.0, branch if ends_branch else std, generator=generator)

    def encode_text(self, units: Tensor, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the Talker reads at each unit; it depends on at most `lookahead` units ahead.

        Args:
            units: (S, U) int64.
            states: (S, U, Dt) the Thinker's states of each unit's word.
            lengths: (S,) int64 units of each; what stands behind does not matter. None: all have U.

        Returns:
            (S, U, D); zeros behind the end.
        """
        inside = None
        if lengths is not None:
            inside = torch.arange(units.shape[1], device=units.device) < lengths[:, None]
        encoded: Tensor = self.text(units, self.text.project(states), inside)
        return encoded

    def inputs(self, codes: Tensor, begins: Tensor, text: Tensor, voices: Tensor) -> Tensor:
        """What the backbone reads at each step.

        Args:
            codes: (M, K) int64 of the step before; −1 for a code that there is not, as `delay` has them.
            begins: (M,) bool, the first steps of a sentence, whose `codes` do not matter.
            text: (M, D) of `encode_text`, at the pointer.
            voices: (M,) int64.

        Returns:
            (M, D).
        """
        config = self.config
        K, V = config.num_codebooks, config.codebook_size
        rows = codes + torch.arange(0, K * V, V, device=codes.device)
        rows = rows.masked_fill((codes < 0) | begins[:, None], K * V)
        table = self.embed_codes
        if isinstance(table, nn.Embedding):
            before = F.embedding_bag(rows, table.weight, mode="sum")
        else:
            before = table(rows).sum(1)
        inputs: Tensor = before + text + self.embed_voices(voices)
        return inputs

    def backbone(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Runs the decoder over frames.

        Args:
            x: (B, T, D) of `inputs`.
            positions: (B, T) int64, steps since the sentence began; None counts on from the cache's length, or from 0.
            segments: sentences of packed rows; not together with a cache.
            cache: holds the steps before these and takes these in.

        Returns:
            (B, T, D) hidden states after the last norm.
        """
        if cache is not None and segments is not None:
            raise ValueError("packed rows cannot be cached: give segments or a cache, not both")
        length = x.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + length, device=x.device)[None]
        rotation = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.layers:
            x = block(x, rotation, segments, cache)
        if cache is not None:
            cache.advance(length)
        hidden: Tensor = self.norm(x)
        return hidden

    def move_logits(self, hidden: Tensor) -> Tensor:
        """(M, num_moves) for (M, D) states: moves of 0 to `max_advance` units, then `stop`."""
        logits: Tensor = self.moves(hidden)
        return logits

    def frame(self, hidden: Tensor, pick: Pick) -> Tensor:
        """The codes of a step.

        Args:
            hidden: (M, D).
            pick: chooses (M,) codes of codebook k from (M, V) logits; asked for k = 0 … K − 1 in order.

        Returns:
            (M, K) int64. With the delay pattern they are of different frames: see `delay`.
        """
        return self.codes.draw(hidden, pick)

    def forward(self, batch: SpeechBatch, states: Tensor) -> TalkerLosses:
        """See `losses`."""
        return self.losses(batch, states)

    def losses(self, batch: SpeechBatch, states: Tensor) -> TalkerLosses:
        """The losses of all frames, each with the true frames before it in sight.

        In training some of those are replaced by `code_corruption`, and some sentences are without states.

        Args:
            batch: on the Talker's device.
            states: (N, Dt) the Thinker's, of `batch.ids`.
        """
        config, device = self.config, states.device
        steps = lay_out_steps(batch.frames, config.flush, device)
        text = self._read_text(batch, states, steps)
        K = config.num_codebooks
        behind = torch.arange(K, device=device) if config.pattern == "delay" else torch.zeros_like(batch.codes[0])
        none = batch.codes.shape[0]
        before = steps.frames(behind + 1, none)
        fed = F.pad(self._with_noise(batch.codes), (0, 0, 0, 1), value=-1).gather(0, before)
        x = self.inputs(fed, steps.inside == 0, text, batch.voices[steps.sentence])
        hidden = self.backbone(x[None], steps.inside[None], steps.segments)[0]
        targets = F.pad(batch.codes, (0, 0, 0, 1), value=IGNORE).gather(0, steps.frames(behind, none))
        moves = F.pad(batch.moves, (0, 1), value=IGNORE)[steps.frames(0, none)]
        return TalkerLosses(self._codes_loss(hidden, targets), self._moves_loss(hidden, moves))

    def _read_text(self, batch: SpeechBatch, states: Tensor, steps: Steps) -> Tensor:
        """(M, D) the text at the pointers."""
        S, U = batch.units.shape
        gap = (self.config.text_kernel - 1) // 2
        row = lay_out_text(batch.unit_lengths, U, gap, states.device)
        projected = self.text.project(states).index_select(0, batch.words.flatten()[row.places])
        if self.training and self.config.conditioning_dropout:
            heard = torch.rand(S, device=states.device) >= self.config.conditioning_dropout
            projected = projected * heard[row.sentence][:, None]
        units = batch.units.flatten()[row.places]
        encoded = self.text(units[None], projected[None], row.inside[None])[0]
        # Steps behind the last frame stay where that was.
        frame = steps.first + torch.minimum(steps.inside, (steps.count - 1).clamp(min=0))
        read: Tensor = encoded.index_select(0, row.starts[steps.sentence] + batch.pointers[frame])
        return read

    def _with_noise(self, codes: Tensor) -> Tensor:
        """(F, K) with some frames replaced by random ones, in training."""
        if not self.training or not self.config.code_corruption:
            return codes
        replaced = torch.rand(codes.shape[0], 1, device=codes.device) < self.config.code_corruption
        return torch.where(replaced, torch.randint_like(codes, self.config.codebook_size), codes)

    def _codes_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.codes.teach(hidden, targets.clamp(min=0))
        losses = [
            F.cross_entropy(_wide(given), wanted, ignore_index=IGNORE, reduction="sum")
            for given, wanted in zip(logits, targets.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum() / len(losses)

    def _moves_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = _wide(self.move_logits(hidden))
        weight = logits.new_ones(self.config.num_moves)
        weight[self.config.stop] = self.config.stop_weight
        return F.cross_entropy(logits, targets, weight=weight, ignore_index=IGNORE, reduction="sum")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
