"""Decode speed of the native decoder with random weights: tokens/s and GB/s of weights read.

python scripts/probe_native.py [--shapes 12m 100m 600m] [--kinds int8 float32] [--batches 1 4 16] [--prefill 512]
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.ops.native import Decoder, DecoderWeights, LayerWeights, Library, Matrix, load
from muomni.ops.rope import rope_tables

PROMPT = 64


@dataclass(frozen=True)
class Shape:
    """hidden, layers, heads, key/value heads, head size, intermediate, vocabulary."""

    D: int
    L: int
    H: int
    K: int
    Dh: int
    F: int
    V: int


SHAPES = {
    "12m": Shape(256, 4, 4, 2, 64, 1024, 32_000),
    "100m": Shape(768, 12, 12, 4, 64, 2048, 32_000),
    "600m": Shape(1024, 28, 16, 8, 128, 3072, 151_936),
}


def make_weights(shape: Shape, kind: str) -> tuple[DecoderWeights, int]:
    """Random weights and their bytes, a tied head counted once."""
    read = 0

    def matrix(out: int, width: int) -> Matrix:
        nonlocal read
        if kind == "int8":
            data = torch.randint(-127, 128, (out, width), dtype=torch.int8)
            scale = torch.full((out,), 1 / (74 * width**0.5))
            read += data.nbytes + scale.nbytes
            return Matrix(data, scale)
        data = (torch.rand(out, width) * (3 / width) ** 0.5).to(getattr(torch, kind))
        read += data.nbytes
        return Matrix(data)

    D, q, k = shape.D, shape.H * shape.Dh, shape.K * shape.Dh
    layers = tuple(
        LayerWeights(
            torch.ones(D),
            torch.ones(D),
            torch.ones(shape.Dh),
            torch.ones(shape.Dh),
            q=matrix(q, D),
            k=matrix(k, D),
            v=matrix(k, D),
            o=matrix(D, q),
            gate=matrix(shape.F, D),
            up=matrix(shape.F, D),
            down=matrix(D, shape.F),
        )
        for _ in range(shape.L)
    )
    embed = matrix(shape.V, D)
    return DecoderWeights(embed, embed, torch.ones(D), layers, shape.H, shape.K, shape.Dh, 1e-6), read


def make_decoder(
    library: Library, shape: Shape, weights: DecoderWeights, slots: int, capacity: int, options: argparse.Namespace
) -> Decoder:
    dtype = getattr(torch, options.cache)
    keys, values = (torch.zeros(shape.L, slots, shape.K, capacity, shape.Dh, dtype=dtype) for _ in range(2))
    tables = rope_tables(torch.arange(capacity)[None], shape.Dh, 10_000.0, torch.float32)
    cos, sin = (x.reshape(capacity, -1).contiguous() for x in tables)
    return Decoder(
        library, weights, keys, values, cos, sin, threads=options.threads, int8_activations=not options.floats
    )


def prompts(shape: Shape, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    slots = torch.arange(batch).repeat_interleave(length)
    return torch.randint(shape.V, (batch * length,)), slots, torch.arange(length).repeat(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["12m", "100m", "600m"], choices=SHAPES)
    parser.add_argument("--kinds", nargs="+", default=["int8"], choices=["int8", "float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="decoding per measurement, three of them")
    parser.add_argument("--kv-cache-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--floats", action="store_true", help="float activations with int8 weights")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded behind the prompt")
    parser.add_argument("--prefill", type=int, default=0, help="also time prompts of this many tokens")
    options = parser.parse_args()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(library.reason)
    print(f"{library.instructions}, {options.threads} threads, prompt {PROMPT}, {options.steps} tokens decoded")
    for name in options.shapes:
        shape = SHAPES[name]
        for kind in options.kinds:
            weights, read = make_weights(shape, kind)
            for batch in options.batches:
                decoder = make_decoder(library, shape, weights, batch, PROMPT + options.steps + 1, options)
                tokens, slots, positions = prompts(shape, batch, PROMPT)
                last = torch.arange(PROMPT - 1, batch * PROMPT, PROMPT)
                new = decoder.forward(tokens, slots, positions, last).argmax(-1)
                rows, at = torch.arange(batch), torch.full((batch,), PROMPT)
                decoder.greedy(new, rows, at, options.steps)
                speeds = []
                for _ in range(3):
                    began, count = time.perf_counter(), 0
                    while time.perf_counter() - began < options.seconds:
                        decoder.greedy(new, rows, at, options.steps)
                        count += options.steps
                    speeds.append(count / (time.perf_counter() - began))
                steps = statistics.median(speeds)
                print(
                    f"{name:>5} {kind:8} batch {batch:2}: {steps * batch:8.1f} tok/s, {steps * read / 1e9:5.1f} GB/s "
                    f"({min(speeds) * batch:.1f} .. {max(speeds) * batch:.1f})",
                    flush=True,
                )
            if options.prefill:
                decoder = make_decoder(library, shape, weights, 1, options.prefill, options)
                tokens, slots, positions = prompts(shape, 1, options.prefill)
                times = []
                for _ in range(4):
                    began = time.perf_counter()
                    decoder.forward(tokens, slots, positions, positions[-1:])
                    times.append(time.perf_counter() - began)
                print(f"{name:>5} {kind:8} prefill {options.prefill}: {options.prefill / min(times):8.1f} tok/s")


if __name__ == "__main__":
    main()
