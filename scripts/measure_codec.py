"""Measures a trained speech codec on recordings it has not seen.

    python scripts/measure_codec.py runs/codec-tiny speech/*/val.jsonl --out runs/codec-tiny/measured

For each source: short-time intelligibility (STOI, needs `pip install pystoi`) of what comes back against the
recording, and the spectral losses. Over all: bits a second, the share of codes used in each codebook and the entropy
of each, real-time factors of encoding, of decoding and of decoding frame by frame. Spectrograms of some clips, the
recording beside what came back, go to `--out`. Ends with one line of JSON; exit code 1 where STOI or usage is below
its limit.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import SourceSpec
from muomni.data.media.audio import load_audio
from muomni.data.speech.recording_cache import references
from muomni.eval.speech_quality import Sentence, Spoken, plot_spectrograms
from muomni.formats.codec import load_codec
from muomni.model.codec import SpeechCodec, StreamingDecoder
from muomni.training.codec.losses import spectral_losses

# STOI compares stretches of 0.4 s; shorter recordings are put one behind the other up to this length.
_SECONDS = 3.0


@dataclass
class Quality:
    """Sums over the recordings of a source; `stoi` has (value, seconds) of each stretch."""

    clips: int = 0
    stoi: list[tuple[float, float]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def mean_stoi(self) -> float:
        """Mean over the stretches, by their length."""
        total = sum(seconds for _, seconds in self.stoi)
        return sum(value * seconds for value, seconds in self.stoi) / max(total, 1e-9)


@dataclass
class Clock:
    """Seconds of computing for seconds of sound."""

    computing: float = 0.0
    sound: float = 0.0

    @property
    def factor(self) -> float:
        """Real-time factor: below 1 is faster than speech."""
        return self.computing / max(self.sound, 1e-9)


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", type=Path, help="a codec's run or folder")
    parser.add_argument("sources", nargs="+", help="manifests, sounds or folders of them")
    parser.add_argument("--limit", type=int, default=100, help="recordings of a source")
    parser.add_argument("--pictures", type=int, default=2, help="spectrograms of a source")
    parser.add_argument("--out", type=Path, help="folder for spectrograms and report.json")
    parser.add_argument("--min-stoi", type=float, default=0.88)
    parser.add_argument("--min-usage", type=float, default=0.5)
    options = parser.parse_args()
    codec = load_codec(options.codec)
    clocks = {name: Clock() for name in ("encode", "decode", "stream")}
    counts = torch.zeros(codec.num_codebooks, codec.codebook_size, dtype=torch.int64)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    qualities: dict[str, Quality] = {}
    for source in options.sources:
        name = Path(source).parent.name + "/" + Path(source).stem
        quality = qualities[name] = measure(codec, source, name, counts, clocks, options)
        losses = "  ".join(f"{key} {value / quality.clips:.3f}" for key, value in quality.losses.items())
        print(f"{name:32} {quality.clips:4} clips  STOI {quality.mean_stoi:.3f}  {losses}", flush=True)
    report = summary(codec, qualities, counts, clocks)
    for key, value in report.items():
        print(f"{key}: {value}")
    if options.out is not None:
        (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    good = report["stoi"] >= options.min_stoi and min(report["usage"]) >= options.min_usage
    return 0 if good else 1


def measure(
    codec: SpeechCodec,
    source: str,
    name: str,
    counts: Tensor,
    clocks: dict[str, Clock],
    options: argparse.Namespace,
) -> Quality:
    """One source; adds to `counts` how often each code came, and to `clocks`."""
    quality = Quality()
    waiting: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for number, samples in enumerate(recordings(source, options.limit)):
        seconds = len(samples) / codec.sample_rate
        codes = timed(clocks["encode"], seconds, partial(codec.encode, samples))
        decoded = timed(clocks["decode"], seconds, partial(codec.decode, codes))[: len(samples)]
        if number % 10 == 0:
            timed(clocks["stream"], seconds, partial(streamed, codec, codes))
        counts.scatter_add_(1, codes, torch.ones_like(codes))
        quality.clips += 1
        if len(samples) >= 2048:
            for key, value in spectral_losses(decoded[None], samples[None], codec.sample_rate).items():
                quality.losses[key] = quality.losses.get(key, 0.0) + float(value)
        if options.out is not None and number < options.pictures:
            pair = Sentence(name, samples.numpy()), Spoken(decoded.numpy(), seconds, None)
            plot_spectrograms([pair], options.out / f"{name.replace('/', '-')}-{number}.png")
        waiting.append((samples.double().numpy(), decoded.double().numpy()))
        if sum(len(clip) for clip, _ in waiting) >= _SECONDS * codec.sample_rate:
            quality.stoi.append(intelligibility(waiting, codec.sample_rate))
            waiting.clear()
    if sum(len(clip) for clip, _ in waiting) >= codec.sample_rate or (waiting and not quality.stoi):
        quality.stoi.append(intelligibility(waiting, codec.sample_rate))
    return quality


def recordings(source: str, limit: int) -> Iterator[Tensor]:
    """The first sounds that a source names."""
    for number, reference in enumerate(references(SourceSpec(path=source))):
        if number == limit:
            return
        yield torch.from_numpy(load_audio(reference))


def timed(clock: Clock, seconds: float, work: Callable[[], Tensor]) -> Tensor:
    """The result of `work`; its time goes to the clock."""
    begin = time.perf_counter()
    result = work()
    clock.computing += time.perf_counter() - begin
    clock.sound += seconds
    return result


def streamed(codec: SpeechCodec, codes: Tensor) -> Tensor:
    """Decoded one frame at a time."""
    stream = StreamingDecoder(codec)
    return torch.cat([stream.push(codes[None, :, t : t + 1]) for t in range(codes.shape[1])], 1)[0]


def intelligibility(clips: list[tuple[NDArray[np.float64], NDArray[np.float64]]], rate: int) -> tuple[float, float]:
    """STOI of clips one behind the other, and their seconds."""
    from pystoi import stoi  # type: ignore[import-not-found]

    recorded, decoded = (np.concatenate(parts) for parts in zip(*clips, strict=True))
    return float(stoi(recorded, decoded, rate)), len(recorded) / rate


def summary(
    codec: SpeechCodec, qualities: dict[str, Quality], counts: Tensor, clocks: dict[str, Clock]
) -> dict[str, Any]:
    """What the last line says."""
    shares = counts.double() / counts.sum(1, keepdim=True)
    bits = -(shares * shares.clamp(min=1e-12).log2()).sum(1)
    every = Quality(stoi=[one for part in qualities.values() for one in part.stoi])
    return {
        "stoi": round(every.mean_stoi, 4),
        "stoi_by_source": {name: round(part.mean_stoi, 4) for name, part in qualities.items()},
        "clips": sum(part.clips for part in qualities.values()),
        "kbit_per_s": round(codec.config.bits_per_second / 1000, 3),
        "entropy_kbit_per_s": round(float(bits.sum()) * codec.frame_rate / 1000, 3),
        "frames": int(counts[0].sum()),
        "usage": [round(float(value), 3) for value in (counts > 0).double().mean(1)],
        "entropy_bits": [round(float(value), 2) for value in bits],
        "largest_entropy_bits": round(math.log2(codec.codebook_size), 2),
        "parameters": codec.num_parameters(),
        "real_time_factors": {name: round(clock.factor, 4) for name, clock in clocks.items()},
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main())
