"""Whether fast tokens are right tokens: all cases are compared with the eager fp32 model, one row at a time.

A row is the greedy one exactly when each of its tokens is the reference's most likely token after the tokens
before it. So one forward pass over a finished row judges all of its tokens, also behind a first difference.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Judge:
    """The reference, for `accel.measurements.worker`.

    Args:
        model: a folder.
        prompt: token ids of the row that is decoded.
        new: tokens after it.
        forced: where `prompt`, its greedy continuation and their logits are written.
    """

    def __init__(self, model: str, prompt: list[int], new: int, forced: str) -> None:
        import torch

        from muomni.formats.pretrained import load_model
        from muomni.formats.tensors import resolve_folder
        from muomni.model import KVCache

        self._model = load_model(resolve_folder(Path(model)))
        ids, rows = list(prompt), []
        cache = KVCache(self._model.config.thinker, 1, len(prompt) + new)
        with torch.inference_mode():
            fed = torch.tensor([ids])
            for _ in range(new):
                out = self._model(fed, cache=cache, logits_to_keep=1).logits
                rows.append(out[0, -1])
                fed = out[:, -1].argmax(-1, keepdim=True)
                ids.append(int(fed))
            logits = torch.stack(rows).float().numpy()
        np.savez(forced, ids=np.array(ids[:-1]), logits=logits)
        self.first: dict[str, Any] = {"tokens": ids[len(prompt) :]}

    def turn(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Judges rows.

        Returns:
            `agreement`, the share of tokens that are the reference's own; `equal_rows`, rows of nothing else;
            `worst_gap`, how far below the reference's best logit a chosen one lay at most.
        """
        import torch

        right, rows, worst = 0, 0, 0.0
        with torch.inference_mode():
            for prompt, row in zip(prompts, tokens, strict=True):
                ids = torch.tensor([[*prompt, *row]])
                logits = self._model(ids[:, :-1], logits_to_keep=len(row)).logits[0]
                chosen = logits.gather(1, ids[0, -len(row) :, None])[:, 0]
                gaps = logits.amax(-1) - chosen
                right += int((gaps == 0).sum())
                rows += bool((gaps == 0).all())
                worst = max(worst, float(gaps.max()))
        total = sum(len(row) for row in tokens)
        return {"agreement": right / total, "equal_rows": rows, "rows": len(tokens), "worst_gap": worst}


def fidelity(compute: Callable[[Sequence[int], int], Logits | None], forced: str) -> dict[str, float] | None:
    """How close a case's logits are to the reference's on the reference's own tokens (teacher forcing).

    Args:
        compute: (ids, N) to the (N, V) logits after the last N ids.
        forced: the file that `Judge` wrote.

    Returns:
        `top1`, the share of equal most likely tokens; `kl`, mean Kullback-Leibler divergence from the reference,
        in nats; `worst`, the largest difference of two logits. None where the case gives no logits.
    """
    import torch
    from torch.nn.functional import kl_div

    with np.load(forced) as file:
        ids, reference = file["ids"].tolist(), file["logits"]
    logits = compute(ids, len(reference))
    if logits is None:
        return None
    top1 = worst = kl = 0.0
    # Row by row: arrays of all of them, once freed, would stay in the heap and count as the case's memory.
    for row, right in zip(logits, reference, strict=True):
        top1 += float(row.argmax() == right.argmax())
        worst = max(worst, float(np.abs(row - right).max()))
        changed, wanted = (torch.from_numpy(x).double().log_softmax(-1) for x in (row, right))
        kl += float(kl_div(changed, wanted, reduction="sum", log_target=True))
    return {"top1": top1 / len(reference), "kl": kl / len(reference), "worst": worst}
