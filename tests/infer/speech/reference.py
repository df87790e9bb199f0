"""One sentence, spoken the slow way: each frame computes everything again, with neither caches nor batches.

It shares with what is tested the model's own functions, the texts' units and tokens, and the numbers to draw with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from muomni import MuOmni
from muomni.data.speech.spoken_text import Word, spoken_words, tokens_of, units_of
from muomni.infer.speech import SpeechSettings
from muomni.infer.speech.speaker import sentence_seed
from muomni.model.talker import undelay


class Pointer:
    """The rule of `infer.speech.speaker` in plain numbers."""

    def __init__(self, end: int, drawn: bool) -> None:
        self.end, self.drawn = end, drawn
        self.place, self.saved, self.going, self.ended = 0, 0.5, 1.0, False

    def move(self, logits: Sequence[float], number: float) -> None:
        *moves, stop = logits
        if self.place == self.end:
            chance = 1 / (1 + math.exp(moves[0] - stop))
            self.going *= 1 - chance
            self.ended = number < chance if self.drawn else self.going <= 0.5
            return
        weights = [math.exp(logit - max(moves)) for logit in moves]
        if self.drawn:
            sums = [sum(weights[: n + 1]) for n in range(len(weights))]
            step = next(n for n, total in enumerate(sums) if total > number * sums[-1])
        else:
            self.saved += sum(n * weight for n, weight in enumerate(weights)) / sum(weights)
            step = min(int(self.saved), len(moves) - 1)
            self.saved -= step
        self.place = min(self.place + step, self.end)


@torch.no_grad()
def speak_sentence(model: MuOmni, words: list[Word], settings: SpeechSettings, voice: int, seed: int) -> Tensor:
    """(F, K) codes."""
    talker, tokenizer = model.talker, model.tokenizer
    assert talker is not None and tokenizer is not None
    config = talker.config
    K = config.num_codebooks
    ids, places = tokens_of(words, tokenizer)
    units, numbers = units_of(words)
    states = model.talker_states(torch.tensor(ids), [len(ids)])
    read = states[[places[number] for number in numbers]]
    text = talker.encode_text(torch.tensor(units)[None], read[None])[0]
    rule = Pointer(len(units) - 1, settings.draws_moves)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.cat([torch.rand(64, K + 1, generator=generator) for _ in range(40)])
    fed, pointers = [torch.zeros(K, dtype=torch.int64)], [0]
    said: list[torch.Tensor] = []
    frames: int | None = None
    while True:
        M = len(pointers)
        begins = torch.arange(M) == 0
        x = talker.inputs(torch.stack(fed), begins, text[pointers], torch.full((M,), voice))
        hidden = talker.backbone(x[None])[0, -1:]

        def pick(logits: Tensor, k: int) -> Tensor:
            return torch.tensor([choose(logits[0].tolist(), settings, float(draws[len(said), k]))])

        codes = talker.frame(hidden, pick)[0]
        if frames is None:
            rule.move(talker.move_logits(hidden)[0].tolist(), float(draws[len(said), K]))
            frames = len(said) + 1 if rule.ended else None
        if config.flush:
            inside = [0 <= len(said) - k < (frames or 1 << 30) for k in range(K)]
            codes = torch.where(torch.tensor(inside), codes, -1)
        said.append(codes)
        fed.append(codes)
        pointers.append(rule.place)
        if frames is not None and len(said) == frames + config.flush:
            steps = torch.stack(said)
            return undelay(steps) if config.flush else steps


def choose(logits: list[float], settings: SpeechSettings, number: float) -> int:
    """One code."""
    if settings.temperature == 0:
        return logits.index(max(logits))
    ranked = sorted(range(len(logits)), key=lambda n: -logits[n])
    kept = sorted(ranked[: settings.top_k or len(ranked)])
    weights = [math.exp((logits[n] - max(logits)) / settings.temperature) for n in kept]
    sums = [sum(weights[: n + 1]) for n in range(len(weights))]
    return next(code for code, total in zip(kept, sums, strict=True) if total > number * sums[-1])


def speak(model: MuOmni, text: str, settings: SpeechSettings) -> tuple[list[Tensor], Tensor]:
    """The (F, K) codes of each sentence and the samples of all."""
    codec = model.codec
    assert codec is not None and settings.seed is not None and model.talker is not None
    voice = settings.voice_number(model.talker.config.voices)
    codes = [
        speak_sentence(model, words, settings, voice, sentence_seed(settings.seed, number))
        for number, words in enumerate(spoken_words(text))
    ]
    pause = torch.zeros(round(settings.pause * codec.sample_rate))
    sounds = [codec.decode(one.T) for one in codes]
    for sound in sounds:
        sound[:80] *= torch.arange(80) / 80  # 5 ms at 16 kHz
    return codes, torch.cat([piece for sound in sounds for piece in (pause, sound)][1:])
