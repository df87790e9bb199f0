"""Many prompts: as many side by side as the engine has slots, replies in the order of the prompts."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muomni.errors import PromptError
from muomni.infer.engine.engine import Engine
from muomni.infer.limits import STOP_NEEDS_TEXT, token_budget
from muomni.infer.reply import Reply
from muomni.infer.request import EngineInput, Request
from muomni.infer.sampling import SamplingParams
from muomni.infer.speculative.drafts import DraftProposer
from muomni.infer.streaming import TextStream

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Prompts that are let in before the first of them must have ended, for each slot: enough that a long reply
# seldom leaves slots without work, few enough that a file of any length fits in memory.
_AHEAD = 8


def generate_all(
    engine: Engine,
    tokenizer: "Tokenizer",
    prompts: Iterable[EngineInput | tuple[Sequence[int], SamplingParams]],
    *,
    end_ids: Sequence[int] | None = None,
    batch_invariant: bool = False,
    speculate: bool | DraftProposer = False,
    keep_going: bool = False,
) -> Iterator[Reply]:
    """Answers prompts of any lengths; takes the next ones in only when there is room for them.

    Args:
        engine: whose slots hold the longest of them with its reply.
        tokenizer: turns ids into text.
        prompts: ids and settings of each; one with an error gets a reply that says it.
        end_ids, batch_invariant, speculate: see `TextStream`.
        keep_going: a prompt that is empty or does not fit gets a reply that says it, too.

    Yields:
        the replies in the order of the prompts.

    Raises:
        PromptError: a prompt that is empty or does not fit; replies to those before it have been given.
    """
    how: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": speculate}
    running: deque[TextStream | Reply] = deque()
    try:
        wrong = None
        for prompt in prompts:
            asked = EngineInput(*prompt)
            try:
                if asked.error is not None:
                    running.append(Reply.failed(str(asked.error)))
                else:
                    media = asked.media
                    running.append(TextStream(engine, tokenizer, asked.ids, asked.params, end_ids, media=media, **how))
            except PromptError as error:
                if not keep_going:
                    wrong = error
                    break
                running.append(Reply.failed(str(error)))
            while len(running) >= _AHEAD * engine.cache.slots:
                yield _finished(running.popleft())
        while running:
            yield _finished(running.popleft())
        if wrong is not None:
            raise wrong
    finally:
        for stream in running:
            if isinstance(stream, TextStream):
                stream.close()


def _finished(stream: TextStream | Reply) -> Reply:
    if isinstance(stream, Reply):
        return stream
    with closing(stream):
        return stream.finish()


def generate_ids(engine: Engine, ids: Tensor, params: SamplingParams, end_ids: Sequence[int]) -> Tensor:
    """Continues B rows of token ids; see `generate`, which it agrees with.

    Args:
        engine: whose slots hold the rows with what follows them.
        ids: (B, T) int64.
        params: for all rows.
        end_ids: tokens that end a row, unless the settings say otherwise.

    Returns:
        (B, N) int64 on the model's device.
    """
    if params.stops:
        raise PromptError(STOP_NEEDS_TEXT)
    limit = token_budget(engine.model, ids.shape, params)
    ends = frozenset() if params.ignore_eos else frozenset(end_ids)
    rows = [
        Request(prompt=prompt, params=params, limit=limit, ends=ends, row=row)
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


def progress_bar(replies: Iterator[Reply], total: int, wanted: bool | None) -> Iterator[Reply]:
    """Passes replies on and shows how many there have been."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield from replies
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("replies"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    started, tokens, shown = time.perf_counter(), 0, False
    with Progress(*columns, console=Console(stderr=True), transient=not wanted) as bar:
        task = bar.add_task("", total=total, speed="", visible=bool(wanted))
        for done, reply in enumerate(replies, 1):
            tokens += reply.timing.new_tokens
            seconds = time.perf_counter() - started
            shown = shown or bool(wanted) or seconds > 1
            bar.update(task, completed=done, visible=shown, speed=f"{tokens / seconds:,.0f} tokens/s")
            yield reply
