"""Many prompts: as many side by side as the engine has slots, replies in the order of the prompts."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muomni.errors import EngineError, NonFiniteError, PromptError
from muomni.infer.engine.engine import Engine
from muomni.infer.engine.scheduler import Request
from muomni.infer.preprocess import EngineInput, check_ids_alone
from muomni.infer.sampling import SamplingParams
from muomni.infer.speculative.drafts import DraftProposer
from muomni.infer.streaming import Reply, TextStream
from muomni.infer.structured import Grammar
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Prompts that are let in before the first of them must have ended, for each slot: enough that a long reply
# seldom leaves slots without work, few enough that a file of any length fits in memory.
_AHEAD = 8


def generate_all(
    engine: Engine,
    tokenizer: "Tokenizer",
    prompts: Iterable[EngineInput],
    *,
    batch_invariant: bool = False,
    speculate: bool | DraftProposer = False,
    keep_going: bool = False,
) -> Iterator[Reply]:
    """Answers prompts of any lengths; takes the next ones in only when there is room for them.

    Args:
        engine: whose slots hold the longest of them with its reply.
        tokenizer: turns ids into text.
        prompts: one with an error gets a reply with that error.
        batch_invariant: see `Request`.
        speculate: see `Request`.
        keep_going: a prompt that the engine refuses or fails at gets a reply with the error, too.

    Yields:
        the replies in the order of the prompts.

    Raises:
        PromptError: a prompt that is empty or does not fit; replies to those before it have been given.
        NonFiniteError: the model gave no finite logits.
    """
    running: deque[TextStream | Reply] = deque()

    def start(prompt: EngineInput) -> TextStream | Reply:
        if prompt.error is not None:
            return Reply.failed(str(prompt.error))
        try:
            return TextStream(engine, tokenizer, prompt, batch_invariant=batch_invariant, speculate=speculate)
        except PromptError as error:
            if not keep_going:
                raise
            return Reply.failed(str(error))

    try:
        wrong = None
        for prompt in prompts:
            try:
                running.append(start(prompt))
            except PromptError as error:
                wrong = error
                break
            while len(running) >= _AHEAD * engine.cache.slots:
                yield _finished(running.popleft(), keep_going)
        while running:
            yield _finished(running.popleft(), keep_going)
        if wrong is not None:
            raise wrong
    finally:
        for stream in running:
            if isinstance(stream, TextStream):
                stream.close()


def _finished(stream: TextStream | Reply, keep_going: bool) -> Reply:
    if isinstance(stream, Reply):
        return stream
    with closing(stream):
        try:
            return stream.finish()
        except (EngineError, NonFiniteError) as error:
            if not keep_going:
                raise
            return Reply.failed(str(error))


def generate_ids(
    engine: Engine,
    ids: Tensor,
    params: SamplingParams,
    limit: int,
    end_ids: Sequence[int],
    grammar: Grammar | None = None,
) -> Tensor:
    """Continues B rows of token ids; see `generate`, which it agrees with.

    Args:
        engine: whose slots hold the rows with what follows them.
        ids: (B, T) int64.
        params: for all rows.
        limit: the token budget of each row.
        end_ids: tokens that end a row, unless the settings say otherwise.
        grammar: that each row follows, compiled.

    Returns:
        (B, N) int64 on the model's device.
    """
    check_ids_alone(params)
    ends = frozenset() if params.ignore_eos else frozenset(end_ids)
    rows = [
        Request(
            prompt=prompt,
            params=params,
            limit=limit,
            ends=ends,
            row=row,
            constraint=None if grammar is None else grammar.begin(),
        )
        for row, prompt in enumerate(ids.tolist())
    ]
    try:
        for request in rows:
            engine.submit(request)
        longest = max(len(engine.finish(request).tokens) for request in rows)
    finally:
        for request in rows:
            engine.cancel(request)
    filled = [request.tokens + list(end_ids[:1]) * (longest - len(request.tokens)) for request in rows]
    return torch.tensor(filled, device=engine.model.device)


def show_progress(replies: Iterator[Reply], total: int, wanted: bool | None) -> Iterator[Reply]:
    """Passes replies on and counts them in a bar; `wanted` None shows it in a terminal, after a second."""
    if wanted is False:
        yield from replies
        return
    started, tokens = time.perf_counter(), 0
    with progress_bar("replies", total, visible=bool(wanted), always=bool(wanted)) as bar:
        for reply in replies:
            tokens += reply.timing.new_tokens
            seconds = time.perf_counter() - started
            if not wanted and seconds > 1:
                bar.show()
            bar.advance(note=f"{tokens / seconds:,.0f} tokens/s")
            yield reply
