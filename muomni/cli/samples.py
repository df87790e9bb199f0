"""Sample texts during training: the one place where training and inference meet."""

from collections.abc import Sequence

from muomni.config import Recipe
from muomni.data import Tokenizer
from muomni.infer import SamplingParams, TextStream
from muomni.model import OmniModel
from muomni.train.loop import Sampler


def make_sampler(tokenizer: Tokenizer, recipe: Recipe) -> Sampler:
    """A function that continues the recipe's prompts, the same draw at the same step whenever it is called."""

    def sample(model: OmniModel, step: int) -> Sequence[str]:
        params = SamplingParams(
            max_new_tokens=recipe.eval.sample_tokens, temperature=0.8, top_p=0.95, seed=recipe.seed + step
        )
        return [
            TextStream(model, tokenizer, tokenizer.encode(prompt), params).finish().text
            for prompt in recipe.eval.prompts
        ]

    return sample
