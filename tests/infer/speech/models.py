"""A nano model that speaks, with random weights: moves of all sizes are about as likely, so that speech gets on."""

from typing import TYPE_CHECKING, Any

import torch

from muomni import MuOmni
from muomni.config import encoder_configs, preset
from muomni.config.codec import codec_preset
from muomni.config.talker import Pattern, TalkerConfig

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


def make_speaking(tokenizer: "Tokenizer", pattern: Pattern = "depth", *, senses: bool = False, **sizes: Any) -> MuOmni:
    """A new one in evaluation mode, which with `senses` also sees and hears; the same for the same arguments."""
    base, codec = preset("nano"), codec_preset("nano")
    talker = TalkerConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "thinker_layer": 1,
            "text_size": 24,
            "text_layers": 2,
            "text_kernel": 5,
            "depth_size": 24,
            "depth_intermediate": 32,
            "max_advance": 3,
            **sizes,
        },
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        pattern=pattern,
        initializer_range=0.2,
        voices=("anna", "ben"),
    )
    thinker = base.thinker.replace(vocab_size=tokenizer.vocab_size, initializer_range=0.1)
    config = base.replace(thinker=thinker, talker=talker, codec=codec)
    if senses:
        ids: dict[str, Any] = {f"{kind}_token_id": tokenizer.id_of(f"<|{kind}|>") for kind in ("image", "audio")}
        config = config.with_encoders(*encoder_configs("nano"), **ids)
    model = MuOmni.from_config(config, tokenizer=tokenizer, device="cpu", seed=0).eval()
    assert model.codec is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a new codec's codebooks are empty: without vectors all codes sound the same
        model.codec.quantizer.counts.fill_(1)
        model.codec.quantizer.sums.normal_(generator=generator)
    return model
