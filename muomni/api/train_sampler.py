"""Sample texts during training: the one place where training and inference meet."""

from collections.abc import Sequence

from muomni.config.recipe import EvalSpec
from muomni.data import Tokenizer
from muomni.infer import EagerRunner, Engine, Runners, SamplingParams
from muomni.infer.offline import generate_all
from muomni.infer.preprocess import EngineInput, token_budget
from muomni.model import OmniModel, SlotCache
from muomni.training.omni_task import Sampler


def make_sampler(tokenizer: Tokenizer, evaluation: EvalSpec, seed: int) -> Sampler:
    """A function that continues the prompts, the same draw at the same step whenever it is called."""

    def sample(model: OmniModel, step: int) -> Sequence[str]:
        params = SamplingParams(max_new_tokens=evaluation.sample_tokens, temperature=0.8, top_p=0.95, seed=seed + step)
        ids = [tokenizer.encode(prompt) for prompt in evaluation.prompts]
        prompts = [EngineInput(each, params, token_budget(model, (1, len(each)), params)) for each in ids]
        longest = max((prompt.length for prompt in prompts), default=1)
        cache = SlotCache(model.config.thinker, max(1, len(prompts)), longest, model.dtype, model.device)
        # The weights change between samples, so nothing is kept or prepared for later.
        with Engine(model, cache, Runners(EagerRunner(model, cache))) as engine:
            return [reply.error or reply.text for reply in generate_all(engine, tokenizer, prompts, keep_going=True)]

    return sample
