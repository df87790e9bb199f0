"""Pictures and sounds take the places that the text keeps for them.

Legend: B batch, T tokens, D width, N tokens of all pictures (or clips) of the batch.
"""

import torch
from torch import Tensor


def fill_placeholders(
    x: Tensor, input_ids: Tensor, token_id: int, features: Tensor, *, stand_in: bool = False
) -> Tensor:
    """Puts `features` in the place of placeholders, in order: `masked_scatter` without waiting for the device.

    Args:
        x: (B, T, D) embeddings of the tokens.
        input_ids: (B, T) int64.
        token_id: of the placeholder.
        features: (N, D), as many as there are placeholders, row of the batch after row.
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
    mask = input_ids == token_id
    count, places = mask.sum(), 0 if stand_in else N
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        check_count(int(count), places, token_id)
    else:
        torch._assert_async(count == places, f"tokens with id {token_id} and features for them differ in number")
    if N == 0:
        return x
    order = mask.flatten().cumsum(0).sub_(1).clamp_(min=0, max=N - 1)
    # Other tokens read some feature too; `where` drops it, and its gradient is zero.
    found = features.to(x.dtype).index_select(0, order).view_as(x)
    return torch.where(mask[..., None], found, x)


def check_count(places: int, features: int, token_id: int) -> None:
    """For whoever knows the numbers on the host.

    Raises:
        ValueError: they differ.
    """
    if places != features:
        raise ValueError(
            f"the tokens have {places} places (id {token_id}) for the {features} features of pictures or sounds: "
            "give as many placeholders as the encoder gives tokens"
        )
