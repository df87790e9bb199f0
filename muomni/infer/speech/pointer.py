"""The one rule by which the Talker's place in the text moves on, and by which speech ends.

The pointer only moves forward, by at most `max_advance` units a frame, and speech ends on END only: nothing is skipped
over, said twice or cut off. What is left to the rule is how fast.

* `expected`: the mean of the predicted moves is saved up, and the pointer moves by the whole units of it. It has no
  luck and keeps the pace that was learnt even where every single "stay" is more likely than any move, which would
  keep an argmax in its place for ever. Rounded, not cut: half a unit is there at the beginning, so that a move that
  is nearly certain is made when it is predicted and not a frame later.
* `drawn`: a move is drawn from the predicted distribution.

On END the classes are "stop" and "stay". `expected` stops once the probability of having stopped by now reaches 1/2
(the median of what `drawn` would do), and that frame is the last.

Legend: N rows, C = max_advance + 2 classes: moves by 0 to max_advance units, and stop.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Saved up at the beginning, in units: makes rounding down rounding to the nearest.
_HALF = 0.5


class Place(NamedTuple):
    """Where N rows stand.

    Attributes:
        pointer: (N,) int64, the unit that is being said.
        saved: (N,) float32, the part of a unit that the expected moves are ahead of the pointer.
        going: (N,) float32, the probability of not having stopped yet.
        waited: (N,) int64, frames since the pointer last moved.
        frames: (N,) int64, frames that were spoken, the last one included.
        ended: (N,) bool.
    """

    pointer: Tensor
    saved: Tensor
    going: Tensor
    waited: Tensor
    frames: Tensor
    ended: Tensor

    @classmethod
    def start(cls, rows: int, device: torch.device) -> "Place":
        """Before the first frame."""
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        saved = torch.full((rows,), _HALF, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        return cls(zeros, saved, torch.ones_like(saved), zeros.clone(), zeros.clone(), ended)

    def select(self, rows: Tensor) -> "Place":
        """Those rows, as copies."""
        return Place(*(x[rows] for x in self))

    def store(self, rows: Tensor, values: "Place") -> None:
        """Writes rows, in place."""
        for own, new in zip(self, values, strict=True):
            own[rows] = new


def advance(
    logits: Tensor,
    place: Place,
    ends: Tensor,
    patience: int,
    numbers: Tensor | None = None,
    drawn: Tensor | None = None,
) -> Place:
    """One frame further.

    Args:
        logits: (N, C), of the frame that was just spoken.
        place: before it.
        ends: (N,) int64, the place of END; beyond any pointer where it is not known yet.
        patience: frames that the pointer may stay; one that has stayed so long is stuck, and keeps that count.
        numbers: (N,) from 0 up to, never, 1, for `drawn` rows; None where none are.
        drawn: (N,) bool, rows whose moves are drawn; None where all are or, without `numbers`, none.

    Returns:
        a new one; rows that had ended stay as they were.
    """
    logits = logits.float().nan_to_num()  # who computes it tells of them; no place lies outside the text
    # What cannot be here takes no part: no stop before END, no move on it.
    moves, chance = logits[:, :-1].softmax(-1), (logits[:, -1] - logits[:, 0]).sigmoid()
    on_end = place.pointer >= ends
    steps = torch.arange(moves.shape[1], device=logits.device, dtype=torch.float32)
    saved = place.saved + moves @ steps
    step = saved.floor().clamp_(max=moves.shape[1] - 1)
    going = torch.where(on_end, place.going * (1 - chance), place.going)
    stopped = going <= 0.5
    if numbers is not None:
        sums = moves.cumsum(-1)
        chosen = (sums > numbers[:, None] * sums[:, -1:]).to(torch.uint8).argmax(-1).float()
        step = chosen if drawn is None else torch.where(drawn, chosen, step)
        stopped = numbers < chance if drawn is None else torch.where(drawn, numbers < chance, stopped)
    pointer = torch.minimum(place.pointer + step.long(), ends)
    pointer = torch.where(on_end, place.pointer, pointer)
    waited = torch.where((pointer > place.pointer) & (place.waited < patience), 0, place.waited + 1)
    new = Place(pointer, saved - step, going, waited, place.frames + 1, on_end & stopped)
    return Place(*(torch.where(place.ended, old, x) for old, x in zip(place, new, strict=True)))
