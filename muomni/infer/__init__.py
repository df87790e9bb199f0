"""Inference. Read in this order:

* `request`: what is asked for and what came out; `sampling`: settings, and how a token is drawn.
* `scheduler`: who has a slot and what the next step reads; `prefix`: prompts that begin alike.
* `runner`: who computes a step; `engine`: the steps, and the front for any thread.
* `prepare`: prompts as ids and embeddings; `media`: pictures and sounds, each encoded once.
* `stream`: tokens as text; `batch`: many prompts; `generate`: the plain loop that all of it must agree with.
* `speak`: a package of its own, for texts and replies that are spoken.
"""

from muomni.infer.engine.engine import Engine, make_engine
from muomni.infer.reference import generate
from muomni.infer.reply import Chunk, Reply, Timing
from muomni.infer.request import FinishReason, Request
from muomni.infer.runners.base import EagerRunner, Runner
from muomni.infer.runners.select import Runners, make_runner
from muomni.infer.sampling import SamplingParams, sample
from muomni.infer.streaming import TextStream

__all__ = [
    "Chunk",
    "EagerRunner",
    "Engine",
    "FinishReason",
    "Reply",
    "Request",
    "Runner",
    "Runners",
    "SamplingParams",
    "TextStream",
    "Timing",
    "generate",
    "make_engine",
    "make_runner",
    "sample",
]
