"""Pictures and sounds take the places that the text keeps for them.

Legend: B batch, T tokens, D width, N tokens of all pictures (or clips) of the batch.
"""

import torch
from torch import Tensor


def fill_placeholders(x: Tensor, places: Tensor, features: Tensor, what: str, *, stand_in: bool = False) -> Tensor:
    """Puts `features` in the place of placeholders, in order: `masked_scatter` without waiting for the device.

    Args:
        x: (B, T, D) embeddings of the tokens.
        places: (B, T) bool, where the placeholders are. Training finds them by their id; in a prompt they are known
            by index, since a model may also generate that id.
        features: (N, D), as many as there are placeholders, row of the batch after row.
        what: the placeholders are called in errors.
        stand_in: there is no placeholder for them: they are computed so that they get gradients, of zero.

    Returns:
        (B, T, D) in the dtype of `x`.

    Raises:
        ValueError: the widths differ, or, on a CPU, the numbers of features and placeholders do. On a GPU the
            numbers are compared on the device, which stops the process if they differ: compare counts on the host.
    """
    N, D = features.shape
    if x.shape[-1] != D:
        raise ValueError(f"features of width {D} cannot stand between embeddings of width {x.shape[-1]}")
    count, wanted = places.sum(), 0 if stand_in else N
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        message = f"tokens ({what}) and features for them differ in number"
        torch._assert_async(count == wanted, message)  # noqa: SLF001 - all others wait for the device
    elif count != wanted:
        raise ValueError(
            f"the tokens have {count} places ({what}) for the {wanted} features of pictures or sounds: "
            "give as many placeholders as the encoder gives tokens"
        )
    if N == 0:
        return x
    order = places.flatten().cumsum(0).sub_(1).clamp_(min=0, max=N - 1)
    # Other tokens read some feature too; `where` drops it, and its gradient is zero.
    spread = features.to(x.dtype).index_select(0, order).view_as(x)
    return torch.where(places[..., None], spread, x)
