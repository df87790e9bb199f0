"""Measures a trained speech codec on recordings it has not seen.

    python scripts/measure_codec.py runs/codec-tiny speech/*/val.jsonl --out runs/codec-tiny/measured

For each source: short-time intelligibility (STOI, needs `pip install pystoi`) of what comes back against the
recording, and the spectral losses. Over all: bits a second, the share of codes used in each codebook and the entropy
of each, real-time factors of encoding, of decoding and of decoding frame by frame. Spectrograms of some clips, the
recording above what came back, go to `--out`. Ends with one line of JSON; exit code 1 where STOI or usage is below
its limit.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import SourceSpec
from muomni.data.media.audio import load_audio
from muomni.data.speech.recording_cache import references
from muomni.formats.codec import load_codec
from muomni.model.codec import SpeechCodec, StreamingDecoder
from muomni.train.codec.losses import spectral_losses

# STOI compares stretches of 0.4 s; shorter recordings are put one behind the other up to this length.
_SECONDS = 3.0


@dataclass
class Found:
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
    found: dict[str, Found] = {}
    for source in options.sources:
        name = Path(source).parent.name + "/" + Path(source).stem
        found[name] = measure(codec, source, name, counts, clocks, options)
        one = found[name]
        losses = "  ".join(f"{key} {value / one.clips:.3f}" for key, value in one.losses.items())
        print(f"{name:32} {one.clips:4} clips  STOI {one.mean_stoi:.3f}  {losses}", flush=True)
    report = summary(codec, found, counts, clocks)
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
) -> Found:
    """One source; adds to `counts` how often each code came, and to `clocks`."""
    found = Found()
    waiting: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for number, samples in enumerate(recordings(source, options.limit)):
        seconds = len(samples) / codec.sample_rate
        codes = timed(clocks["encode"], seconds, lambda clip=samples: codec.encode(clip))
        decoded = timed(clocks["decode"], seconds, lambda coded=codes: codec.decode(coded))[: len(samples)]
        if number % 10 == 0:
            timed(clocks["stream"], seconds, lambda coded=codes: streamed(codec, coded))
        counts.scatter_add_(1, codes, torch.ones_like(codes))
        found.clips += 1
        if len(samples) >= 2048:
            for key, value in spectral_losses(decoded[None], samples[None], codec.sample_rate).items():
                found.losses[key] = found.losses.get(key, 0.0) + float(value)
        if options.out is not None and number < options.pictures:
            draw(samples, decoded, codec.sample_rate, options.out / f"{name.replace('/', '-')}-{number}.png", name)
        waiting.append((samples.double().numpy(), decoded.double().numpy()))
        if sum(len(clip) for clip, _ in waiting) >= _SECONDS * codec.sample_rate:
            found.stoi.append(intelligibility(waiting, codec.sample_rate))
            waiting.clear()
    if sum(len(clip) for clip, _ in waiting) >= codec.sample_rate or (waiting and not found.stoi):
        found.stoi.append(intelligibility(waiting, codec.sample_rate))
    return found


def recordings(source: str, limit: int) -> Iterator[Tensor]:
    """The first sounds that a source names."""
    for number, reference in enumerate(references(SourceSpec(path=source))):
        if number == limit:
            return
        yield torch.from_numpy(load_audio(reference))


def timed(clock: Clock, seconds: float, work):  # type: ignore[no-untyped-def]
    """What `work` gives; the clock takes its time."""
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
    from pystoi import stoi

    recorded, decoded = (np.concatenate(parts) for parts in zip(*clips, strict=True))
    return float(stoi(recorded, decoded, rate)), len(recorded) / rate


def summary(codec: SpeechCodec, found: dict[str, Found], counts: Tensor, clocks: dict[str, Clock]) -> dict[str, object]:
    """What the last line says."""
    shares = counts.double() / counts.sum(1, keepdim=True)
    bits = -(shares * shares.clamp(min=1e-12).log2()).sum(1)
    every = Found(stoi=[one for part in found.values() for one in part.stoi])
    return {
        "stoi": round(every.mean_stoi, 4),
        "stoi_by_source": {name: round(part.mean_stoi, 4) for name, part in found.items()},
        "clips": sum(part.clips for part in found.values()),
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


def draw(recorded: Tensor, decoded: Tensor, rate: int, path: Path, title: str) -> None:
    """Both spectrograms, one above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, samples, name in zip(figure.subplots(2, 1), (recorded, decoded), ("recording", "decoded"), strict=True):
        window = torch.hann_window(512)
        spectrum = torch.stft(samples, 512, 128, window=window, return_complex=True).abs()
        decibels = 20 * (spectrum * 4 / 512).clamp(min=1e-5).log10()
        axes.imshow(
            decibels.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, len(samples) / rate, 0, rate / 2000),
            vmin=-90,
            vmax=0,
        )
        axes.set_title(f"{title}: {name}")
        axes.set_ylabel("kHz")
    axes.set_xlabel("s")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
