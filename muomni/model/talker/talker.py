"""The Talker: text and the Thinker's states in, codes of speech out.

It carries a pointer into the units of a sentence. Each frame it reads the text at the pointer and the codes of the
frame before, and predicts the codes of the frame and how many units the pointer moves; a class of its own ends the
sentence. Sentences do not see each other.

The text is read as bytes and the Thinker's states, mixed over a few units before and behind: `TalkerConfig.lookahead`
units ahead and no more, so that speech can begin before the text is complete.

Legend: S sentences, B rows, U units, N tokens, F frames, K codebooks, V codebook_size, M steps, D hidden_size,
P depth_size, C text_size, Dt width of the Thinker.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config.talker import TalkerConfig
from muomni.model.codec.layers import Depthwise
from muomni.model.kv_cache import Cache
from muomni.model.layers import Block, RMSNorm
from muomni.model.talker.batch import UNITS, SpeechBatch
from muomni.model.talker.packing import Steps, lay_out_steps, lay_out_text
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE
from muomni.ops.rope import rope_tables


class TextBlock(nn.Module):
    """x + scale · mlp(norm(depthwise(x))) (ConvNeXt, arXiv:2201.03545), as far ahead as back."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        width = config.text_size
        self.ahead = (config.text_kernel - 1) // 2
        self.depthwise = Depthwise(width, config.text_kernel)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        # Of the branches that add up, each begins small.
        self.scale = nn.Parameter(torch.full((width,), 1 / config.text_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, C) to (B, U, C)."""
        # The convolution looks back only; what comes out is taken from further behind.
        seen = self.depthwise(F.pad(x, (0, 0, 0, self.ahead)))[:, self.ahead :]
        branch: Tensor = self.down(F.gelu(self.up(self.norm(seen))))
        return x + self.scale * branch


class TextEncoder(nn.Module):
    """Units and states to what the Talker adds to its input.

    Args:
        config: sizes.
        thinker_size: width of the Thinker's states.
    """

    def __init__(self, config: TalkerConfig, thinker_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.text_size
        table = torch.empty(UNITS, width)
        self.embed_units = nn.Embedding(UNITS, width, _weight=table)
        self.state_norm = RMSNorm(thinker_size, config.rms_norm_eps)
        # Without a bias: states of zeros add nothing, which is what `conditioning_dropout` makes of a sentence.
        self.state_proj = nn.Linear(thinker_size, width, bias=False)
        self.layers = nn.ModuleList(TextBlock(config) for _ in range(config.text_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.out = nn.Linear(width, config.hidden_size, bias=False)

    def project(self, states: Tensor) -> Tensor:
        """(…, C) of (…, Dt) states of the Thinker; a token's does not depend on the others."""
        projected: Tensor = self.state_proj(self.state_norm(states))
        return projected

    def forward(self, units: Tensor, projected: Tensor, inside: Tensor | None = None) -> Tensor:
        """Runs the encoder.

        Args:
            units: (B, U) int64.
            projected: (B, U, C) as `project` gives it.
            inside: (B, U) bool, where there are units; elsewhere every layer sees zeros, as beyond a row's ends. None
                where there are units everywhere.

        Returns:
            (B, U, D); zeros where there are no units.
        """
        keep = None if inside is None else ~inside[..., None]
        # The residual stream is not in low precision under autocast, as in the Thinker.
        x = _masked(self.embed_units(units) + projected, keep)
        for block in self.layers:
            x = _masked(block(x), keep)
        out: Tensor = self.out(self.norm(x))
        return out


def _masked(x: Tensor, outside: Tensor | None) -> Tensor:
    return x if outside is None else x.masked_fill(outside, 0)


# The codes of a frame come from `DepthPredictor` or `ParallelHeads`: `teacher_forced_logits` are those of
# known codes, `sample` picks codes. M is frames there.
# (M, V) logits and the number of the codebook to (M,) int64 codes.
Pick = Callable[[Tensor, int], Tensor]


class DepthStep(nn.Module):
    """Logits of one codebook: head(norm(z + mlp(norm(z))))."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        width, hidden = config.depth_size, config.depth_intermediate
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.out_norm = RMSNorm(width, config.rms_norm_eps)
        self.head = nn.Linear(width, config.codebook_size, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """(M, P) to (M, V)."""
        logits: Tensor = self.head(self.out_norm(z + self.down(F.gelu(self.up(self.norm(z))))))
        return logits


class DepthPredictor(nn.Module):
    """Each code with the ones before it in its frame in sight: z_k = proj(h) + Σ_{j<k} E_j[code j].

    There is no attention and no cache inside a frame: what a residual quantiser's code k depends on is the sum of
    what the codes before it stand for, and sums of vectors say that.
    """

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_size, config.depth_size, bias=False)
        K, V, P = config.num_codebooks, config.codebook_size, config.depth_size
        self.embed_codes = nn.ModuleList(nn.Embedding(V, P, _weight=torch.empty(V, P)) for _ in range(K - 1))
        self.steps = nn.ModuleList(DepthStep(config) for _ in range(K))

    def teacher_forced_logits(self, hidden: Tensor, codes: Tensor) -> Iterator[Tensor]:
        """For each codebook (M, V) logits, given (M, D) states and (M, K) the true codes."""
        known = iter(codes.unbind(1))
        yield from self._run(hidden, lambda _logits, _k: next(known))

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, K) codes for (M, D) states."""
        chosen: list[Tensor] = []

        def keep(logits: Tensor, k: int) -> Tensor:
            chosen.append(pick(logits, k))
            return chosen[-1]

        for _ in self._run(hidden, keep):
            pass
        return torch.stack(chosen, dim=1)

    def _run(self, hidden: Tensor, choose: Pick) -> Iterator[Tensor]:
        z = self.proj(hidden)
        for k, step in enumerate(self.steps):
            logits = step(z)
            yield logits
            code = choose(logits, k)
            if k < len(self.embed_codes):
                z = z + self.embed_codes[k](code)


class ParallelHeads(nn.Module):
    """All codes of a step at once, none knows of the others."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        D, V = config.hidden_size, config.codebook_size
        self.heads = nn.ModuleList(nn.Linear(D, V, bias=False) for _ in range(config.num_codebooks))

    def teacher_forced_logits(self, hidden: Tensor, codes: Tensor) -> Iterator[Tensor]:
        """For each codebook (M, V) logits, given (M, D) states; the codes do not matter."""
        del codes
        for head in self.heads:
            yield head(hidden)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, K) codes for (M, D) states."""
        return torch.stack([pick(head(hidden), k) for k, head in enumerate(self.heads)], dim=1)


# Embeddings of codes are drawn so many times as large as other weights: what they sum up to is then about as large as
# what the text and the state bring, which come out of a product.
_CODE_SCALE = 5.0


@dataclass(frozen=True)
class TalkerTargets:
    """What the Talker should say at each of M steps; `IGNORE` where there is nothing to be said.

    Attributes:
        codes: (M, K) int64.
        moves: (M,) int64.
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
        return self.codes.sample(hidden, pick)

    def forward(self, batch: SpeechBatch, states: Tensor) -> tuple[Tensor, TalkerTargets]:
        """The backbone's states at all frames, each with the true frames before it in sight, and what follows there.

        In training some of those are replaced by `code_corruption`, and some sentences are without states.

        Args:
            batch: on the Talker's device.
            states: (N, Dt) the Thinker's, of `batch.ids`.

        Returns:
            (M, D) states for `codes.teacher_forced_logits` and `move_logits`, and their targets.
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
        codes = F.pad(batch.codes, (0, 0, 0, 1), value=IGNORE).gather(0, steps.frames(behind, none))
        moves = F.pad(batch.moves, (0, 1), value=IGNORE)[steps.frames(0, none)]
        return hidden, TalkerTargets(codes, moves)

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
