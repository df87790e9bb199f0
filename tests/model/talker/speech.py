"""Small models that speak, and random sentences with speech for them."""

from collections.abc import Sequence

import torch

from muomni.config import OmniConfig, preset
from muomni.config.codec import codec_preset
from muomni.config.talker import TalkerConfig, TalkerSpec
from muomni.model import OmniModel
from muomni.model.talker import SpeechBatch
from muomni.model.talker.batch import BEGIN, END, PAD

VOICES = ("ann", "bob")
PATTERNS = ("depth", "delay", "parallel")


def make_config(**changes: object) -> OmniConfig:
    """Nano that speaks; changes are of the Talker."""
    base = preset("nano")
    base = base.replace(thinker=base.thinker.model_dump() | {"vocab_size": 60})
    codec = codec_preset("nano").replace(num_codebooks=3, codebook_size=7)
    sizes: dict[str, object] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "text_size": 12,
        "text_layers": 2,
        "text_kernel": 5,
        "depth_size": 10,
        "depth_intermediate": 14,
        "max_advance": 4,
    }
    spec = TalkerSpec.model_validate(sizes | changes)
    return base.with_speech(spec.build(base.thinker, codec, dict.fromkeys(VOICES, "en")), codec)


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> OmniModel:
    """With weights large enough that all matters, norms and biases that are not ones and zeros."""
    model = OmniModel(make_config(**changes), torch.Generator().manual_seed(seed)).to(dtype).eval()
    draw = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if name.startswith("codec."):
            continue
        scale = 0.3 if parameter.ndim == 1 else 0.15
        parameter.data += scale * torch.randn(parameter.shape, generator=draw).to(dtype)
    return model


def make_speech(
    config: TalkerConfig, sizes: Sequence[tuple[int, int, int]] = ((5, 9, 4), (1, 3, 1), (7, 4, 2)), seed: int = 0
) -> SpeechBatch:
    """Sentences of so many frames, bytes and tokens."""
    draw = torch.Generator().manual_seed(seed)

    def some(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw)

    frames, tokens = tuple(size[0] for size in sizes), tuple(size[2] for size in sizes)
    lengths = tuple(size[1] + 2 for size in sizes)
    units = torch.full((len(sizes), max(lengths)), PAD)
    words = torch.zeros_like(units)
    pointers, moves = [], []
    first = 0
    for n, (count, letters, ids) in enumerate(sizes):
        units[n, : letters + 2] = torch.tensor([BEGIN, *some(256, letters).tolist(), END])
        words[n, : letters + 2] = first + some(ids, letters + 2).sort().values
        first += ids
        pointers.append(some(letters + 2, count).sort().values)
        moves.append(torch.cat((some(config.max_advance + 1, count - 1), torch.tensor([config.stop]))))
    return SpeechBatch(
        ids=some(60, sum(tokens)),
        id_lengths=tokens,
        units=units,
        unit_lengths=lengths,
        words=words,
        codes=some(config.codebook_size, sum(frames), config.num_codebooks),
        pointers=torch.cat(pointers),
        moves=torch.cat(moves),
        frames=frames,
        voices=some(len(config.voices), len(sizes)),
    )
