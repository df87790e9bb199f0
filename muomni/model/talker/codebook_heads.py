"""From a state of the Talker to the K codes of a frame: one after the other inside the frame, or all at once.

Both offer `teach`, the logits of codes that are known, and `draw`, codes that are picked on the way.

Legend: M frames, D hidden_size, P depth_size, K codebooks, V codebook_size.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config.talker import TalkerConfig
from muomni.model.layers import RMSNorm

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

    def teach(self, hidden: Tensor, codes: Tensor) -> Iterator[Tensor]:
        """For each codebook (M, V) logits, given (M, D) states and (M, K) the true codes."""
        known = iter(codes.unbind(1))
        yield from self._run(hidden, lambda _logits, _k: next(known))

    def draw(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, K) codes for (M, D) states."""
        drawn: list[Tensor] = []

        def keep(logits: Tensor, k: int) -> Tensor:
            drawn.append(pick(logits, k))
            return drawn[-1]

        for _ in self._run(hidden, keep):
            pass
        return torch.stack(drawn, dim=1)

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

    def teach(self, hidden: Tensor, codes: Tensor) -> Iterator[Tensor]:
        """For each codebook (M, V) logits, given (M, D) states; the codes do not matter."""
        del codes
        for head in self.heads:
            yield head(hidden)

    def draw(self, hidden: Tensor, pick: Pick) -> Tensor:
        """(M, K) codes for (M, D) states."""
        return torch.stack([pick(head(hidden), k) for k, head in enumerate(self.heads)], dim=1)
