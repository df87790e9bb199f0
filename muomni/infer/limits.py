"""How many tokens may still be generated."""

from collections.abc import Sequence

from muomni.errors import PromptError
from muomni.infer.sampling import SamplingParams
from muomni.model import OmniModel

STOP_NEEDS_TEXT = "stop: token ids hold no text to stop at; use chat, complete or stream"


def token_budget(model: OmniModel, shape: Sequence[int], params: SamplingParams, of_which: str = "") -> int:
    """How many tokens may follow prompts of `shape` (B, T): `max_new_tokens`, less where the context ends.

    Args:
        of_which: what in the prompt takes how many tokens, for the error.
    """
    if len(shape) != 2:
        raise PromptError(f"token ids must be (rows, tokens), not of shape {tuple(shape)}")
    if 0 in shape:
        raise PromptError("the prompt is empty: there is nothing to continue")
    context = model.config.thinker.max_position_embeddings
    if shape[1] >= context:
        raise PromptError(
            f"the prompt has {shape[1]} tokens{f' ({of_which})' if of_which else ''} and the model's context is "
            f"{context}: no room is left for a reply; shorten the prompt"
        )
    return min(params.max_new_tokens, context - shape[1])
