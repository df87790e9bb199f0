"""The count of the Talker's operations is torch's own count of what it computes, in both directions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from muomni.accel import attention_backend
from muomni.model.flops import Flops, model_flops
from tests.model.talker.speech import PATTERNS, make_config, make_model, make_speech
from tests.model.test_flops import attend
from tests.training.objectives.batches import losses_of, make_batch

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_speech_alone(pattern):
    model = make_model(pattern=pattern, thinker_layer=1, dtype=torch.float32).train()
    attention_backend.apply(model, attention_backend.AttentionChoice("reference", "", attend))
    speech = make_speech(model.talker.config, [(70, 30, 9), (3, 2, 1)])
    losses = {"text": 0.0, "speech": 1.0}
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        losses_of(model, make_batch(IDS, speech=speech), losses)
    with FlopCounterMode(display=False) as training:
        losses_of(model, make_batch(IDS, speech=speech), losses).total.backward()
    parts = model_flops(model.config, [], speech=speech)
    assert set(parts) == {"thinker", "talker"}
    found = sum(parts.values(), Flops())
    assert (found.forward, found.training) == (forward.get_total_flops(), training.get_total_flops())


def test_speech_comes_on_top_of_the_text():
    config = make_config()
    assert config.talker is not None
    speech = make_speech(config.talker)
    text, alone = model_flops(config, [7]), model_flops(config, [], speech=speech)
    both = model_flops(config, [7], speech=speech)
    assert both["thinker"] == text["thinker"] + alone["thinker"] and both["talker"] == alone["talker"]
    with pytest.raises(ValueError, match="no Talker"):
        model_flops(config.with_speech(None, None), [7], speech=speech)
