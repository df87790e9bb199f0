"""Inference: `sampling` draws a token, `generate` is the loop, `stream` turns tokens into text as they come."""

from muomni.infer.generate import generate
from muomni.infer.sampling import SamplingParams, sample
from muomni.infer.stream import Piece, Reply, TextStream, Timing

__all__ = ["Piece", "Reply", "SamplingParams", "TextStream", "Timing", "generate", "sample"]
