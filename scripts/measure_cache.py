"""What an int8 KV cache costs: quality on texts, memory, and speed beside a cache of the model's dtype.

    python scripts/measure_cache.py runs/stories ../shared/data/text/tinystories/val.jsonl.gz

Quality: perplexity, KL divergence and agreement of the most likely token, every prediction made from the cache.
Speed: greedy replies of `chat_batch`, taking turns, medians of the rounds. The native runner has no int8 cache, so
that torch's modules compute then; the same modules with a cache of the model's dtype stand beside it.
"""

import argparse
import copy
import gzip
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from muomni import MuOmni
from muomni.eval.quantization_quality import compare_caches
from muomni.model.kv_cache import slot_bytes

# Words of a text that is continued: from so many up to so many, so that lengths differ.
_WORDS = (4, 40)


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file, plain or gzipped."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def prompts_of(path: Path, count: int) -> list[str]:
    """`count` beginnings of texts, of different lengths."""
    low, high = _WORDS
    texts = itertools.islice(texts_of(path), count)
    return [" ".join(text.split(" ")[: low + number * 7 % (high - low + 1)]) for number, text in enumerate(texts)]


def measure_speeds(model: MuOmni, prompts: list[str], new: int, rounds: int) -> dict[str, float]:
    """Tokens/s of decoding by cache and runner."""
    models: dict[str, MuOmni] = {}
    for name, runner, cache in (("auto", "auto", "auto"), ("auto, eager", "eager", "auto"), ("int8", "auto", "int8")):
        models[name] = copy.deepcopy(model)
        models[name].runner = runner  # type: ignore[assignment]
        models[name].cache_dtype = cache  # type: ignore[assignment]
        models[name].chat_batch(prompts, max_new_tokens=4, progress=False)
        print(f"{name}: {models[name].runtime.engine(models[name], 1, 16).note}")
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, variant in models.items():
            replies = variant.chat_batch(prompts, raw=True, max_new_tokens=new, temperature=0, ignore_eos=True)
            speeds[name].append(sum(reply.timing.tokens_per_s for reply in replies))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    """Reads the options and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=128)
    options = parser.parse_args()
    model = MuOmni.from_pretrained(options.run, device="cpu")
    assert model.tokenizer is not None
    thinker = model.config.thinker
    context = thinker.max_position_embeddings
    texts = [model.tokenizer.encode(text)[:context] for text in itertools.islice(texts_of(options.file), options.texts)]
    quality = compare_caches(model, texts)
    print(json.dumps(asdict(quality) | {"perplexity_change": quality.perplexity_change}))
    ratio = slot_bytes(thinker, context, torch.int8) / slot_bytes(thinker, context, model.dtype)
    print(f"memory: {ratio:.3f} of {model.dtype}")
    for rows in (1, 16):
        figures = measure_speeds(model, prompts_of(options.file, rows), options.new, options.rounds)
        print(json.dumps({"rows": rows, "tokens_per_s": {name: round(speed) for name, speed in figures.items()}}))


if __name__ == "__main__":
    main()
