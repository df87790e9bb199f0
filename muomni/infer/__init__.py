"""Inference.

Read in this order:

* `runtime`: what a model keeps between calls, and the way of a prompt to its reply.
* `preprocess`: prompts as token ids and embeddings; `encoder_cache`: pictures and sounds, each encoded once.
* `sampling`: the settings of a request, and how a token is drawn; `penalties`: tokens that came already; `logprobs`.
* `engine`: requests, their slots and what the next step reads (`scheduler`), the steps (`core`), and the front for
  any thread (`engine`); `runners`: what computes a step, over a cache of slots.
* `streaming`: replies, tokens as text; `offline`: many prompts; `reference`: the plain loop that all of it must agree
  with.
* `speculative`: drafts of tokens; `speech`: texts and replies that are spoken.
"""

from muomni.infer.engine.engine import Engine, make_engine
from muomni.infer.engine.scheduler import FinishReason, Request
from muomni.infer.reference import generate
from muomni.infer.runners.select import EagerRunner, Runner, RunnerName, Runners, make_runner
from muomni.infer.sampling import SamplingParams, sample
from muomni.infer.streaming import Chunk, Reply, TextStream, Timing

__all__ = [
    "Chunk",
    "EagerRunner",
    "Engine",
    "FinishReason",
    "Reply",
    "Request",
    "Runner",
    "RunnerName",
    "Runners",
    "SamplingParams",
    "TextStream",
    "Timing",
    "generate",
    "make_engine",
    "make_runner",
    "sample",
]
