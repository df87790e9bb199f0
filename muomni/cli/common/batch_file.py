"""`muomni generate --batch`: a file of prompts to a file of replies, of any length, to be gone on with after a kill.

Only complete lines count: a reply is one write of a whole line, so what a kill leaves is whole replies and at
most one torn line, which the next run cuts off. A reply names the line it answers and a hash of it, and a hash of the
model and the settings, so that replies to other prompts or of another model are not taken for these; one process at a
time writes a file. A prompt whose picture or sound cannot be read gets a reply that says so, which counts as one.
"""

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from muomni.cli.common.options import Decoding
from muomni.cli.common.output import writing
from muomni.errors import MediaError, PromptError, UserError
from muomni.files import json_line

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.infer import Reply, SamplingParams
    from muomni.infer.preprocess import EngineInput

# What a sound's header says may be wrong by some tokens.
_SLACK = 4
_BEGINNING = b'{"line": '


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        prompts, replies: the files.
        sampling: settings for all prompts; those of a line go before them.
        system: what the system message says, for prompts that are texts.
        batch_size: prompts side by side.
        decoding: how the model is loaded and decodes.
        raw: continue texts as they stand.
        batch_invariant: see `MuOmni.chat_batch`.
    """

    prompts: Path
    replies: Path
    sampling: dict[str, Any]
    system: str | None
    batch_size: int
    decoding: Decoding
    raw: bool = False
    batch_invariant: bool = False


class _Line(NamedTuple):
    number: int
    digest: str
    id: Any
    prompt: Any
    sampling: dict[str, Any]


def answer_file(run: str, job: Job) -> dict[str, Any]:
    """Answers all lines that have no reply yet.

    Returns:
        Replies written and those that were there, errors among all, tokens, seconds of answering.

    Raises:
        UserError: a file cannot be read or written, or a line is wrong; says which. Lines are checked before
            any is answered. A picture or sound that cannot be read is no such mistake: its reply tells it.
    """
    with _replies(job) as out:
        return _answer(run, job, out)


def _answer(run: str, job: Job, out: BinaryIO) -> dict[str, Any]:
    kept, errors, made_by = _kept(job, out)
    from muomni.infer.offline import show_progress

    _check_settings(job)  # mistakes in the file are told before the model is loaded
    model = job.decoding.load(run)
    maker = _maker(job, model)
    if made_by not in (None, maker):
        raise UserError(
            f"{job.replies}: its replies are of another model, or made with other settings: give the name of a new "
            "file, or remove this one"
        )
    left, longest = 0, 1
    for line in _lines(job, kept):
        left += 1
        longest = max(longest, _length(model, job, line))
    totals = {"replies": 0, "kept": kept, "errors": errors, "prompt_tokens": 0, "new_tokens": 0}
    pending: deque[_Line] = deque()
    runtime, draft = model.runtime, job.decoding.drafts(model)

    def inputs() -> Iterator["EngineInput"]:
        options: dict[str, Any] = {"raw": job.raw, "alone": job.batch_invariant, "root": job.prompts.parent}
        lines = _lines(job, kept)
        while group := list(islice(lines, job.batch_size)):
            pending.extend(group)
            pairs, names = [(line.prompt, _params(job, line)) for line in group], [""] * len(group)
            yield from runtime.prepare(model, model.tokenizer, pairs, names, keep_going=True, **options)

    started = time.perf_counter()
    replies = runtime.answer(
        model,
        model.tokenizer,
        inputs(),
        slots=max(1, min(job.batch_size, left)),
        capacity=longest,
        batch_invariant=job.batch_invariant,
        speculate=draft,
        keep_going=True,
    )
    for reply in show_progress(replies, left, None):
        with writing(job.replies):
            out.write(_written(pending.popleft(), reply, maker))
        totals["replies"] += 1
        totals["errors"] += reply.error is not None
        totals["prompt_tokens"] += reply.timing.prompt_tokens
        totals["new_tokens"] += reply.timing.new_tokens
    seconds = time.perf_counter() - started
    return {"out": str(job.replies), **totals, "seconds": seconds, "tokens_per_s": totals["new_tokens"] / seconds}


def _check_settings(job: Job) -> None:
    """Refuses a line with a wrong setting, and guessing where no line is greedy; says where not all are."""
    guessed = count = 0
    for line in _lines(job):
        guessed += _params(job, line).is_greedy
        count += 1
    option = job.decoding.drafting_option
    if option is None or guessed == count:
        return
    needs = "--temperature 0 without penalties and biases"
    if not guessed:
        raise UserError(f"{option} guesses the most likely tokens; none of the prompts has {needs}")
    print(
        f"{count - guessed} of {count} prompts do not have {needs}: "
        f"while one of them is answered, {option} does nothing",
        file=sys.stderr,
    )


def _written(line: _Line, reply: "Reply", maker: str) -> bytes:
    values = {
        "line": line.number,
        **({} if line.id is None else {"id": line.id}),
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        **({} if reply.error is None else {"error": reply.error}),
        **({} if reply.logprobs is None else {"logprobs": [each._asdict() for each in reply.logprobs]}),
        "prompt_tokens": reply.timing.prompt_tokens,
        "new_tokens": reply.timing.new_tokens,
        "prompt_sha256": line.digest,
        "made_by": maker,
    }
    return json_line(values)


def _lines(job: Job, skip: int = 0) -> Iterator[_Line]:
    """The lines that hold something, without the first `skip` of them."""
    try:
        with job.prompts.open("rb") as file:
            for number, content in enumerate(file, 1):
                if not content.strip():
                    continue
                if skip > 0:
                    skip -= 1
                    continue
                yield _parse(job, number, content.strip())
    except OSError as error:
        raise UserError(f"{job.prompts}: cannot be read: {error.strerror}") from None


def _parse(job: Job, number: int, content: bytes) -> _Line:
    where = f"{job.prompts}, line {number}"
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise PromptError(f"{where}: is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: is not JSON: {error}") from None
    entry = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(entry, dict):
        raise PromptError(f'{where}: must be a text or an object with "prompt" or "messages", not {value!r:.40}')
    entry = dict(entry)
    if ("prompt" in entry) == ("messages" in entry):
        raise PromptError(f'{where}: must hold either "prompt" or "messages"')
    name = entry.pop("id", None)
    prompt = entry.pop("prompt", None)
    if "messages" in entry:
        prompt = entry.pop("messages")
        if not isinstance(prompt, list):
            raise PromptError(f'{where}: "messages" must be a list')
    elif job.system is not None:
        prompt = [{"role": "system", "content": job.system}, {"role": "user", "content": prompt}]
    return _Line(number, hashlib.sha256(content).hexdigest()[:16], name, prompt, entry)


def _params(job: Job, line: _Line) -> "SamplingParams":
    from muomni.infer import SamplingParams

    try:
        return SamplingParams.of(**{**job.sampling, **line.sampling})
    except PromptError as error:
        raise PromptError(f"{job.prompts}, line {line.number}: {error}") from None


def _length(model: "MuOmni", job: Job, line: _Line) -> int:
    """Tokens of the prompt and its reply; of a picture or sound only the beginning is read.

    Raises:
        PromptError: the line is wrong.
    """
    from muomni.infer.encoder_cache import processor_of
    from muomni.infer.preprocess import read_prompt, token_budget
    from muomni.infer.sampling import check_biases

    assert model.tokenizer is not None
    params = _params(job, line)
    try:
        check_biases(params, model.config.thinker.vocab_size)
        chat = read_prompt(model, model.tokenizer, line.prompt, raw=job.raw, root=job.prompts.parent)
        if not chat.media:
            token_budget(model, (1, len(chat.ids)), params)
        processor = processor_of(model.config)
        inside = sum(processor.size(part.kind, part.source).tokens + _SLACK for part in chat.media)
    except PromptError as error:
        raise PromptError(f"{job.prompts}, line {line.number}: {error}") from None
    except MediaError:
        return 1  # told in its reply
    return min(len(chat.ids) + inside + params.max_new_tokens, model.config.thinker.max_position_embeddings)


@contextmanager
def _replies(job: Job) -> Iterator[BinaryIO]:
    """The file of replies, opened for this process alone; a new one that stays empty is removed again.

    Raises:
        UserError: it cannot be there, or another process writes it.
    """
    if not job.prompts.is_file():
        raise UserError(f"{job.prompts}: there is no such file of prompts")
    if not job.replies.exists() and not job.replies.absolute().parent.is_dir():
        raise UserError(f"{job.replies}: its folder does not exist")
    if job.replies.exists() and (not job.replies.is_file() or job.replies.samefile(job.prompts)):
        raise UserError(f"{job.replies}: replies cannot go there: give the name of a new file")
    new, lock = not job.replies.exists(), FileLock(f"{job.replies}.lock", timeout=0)
    with writing(job.replies):
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{job.replies}: another process is writing replies there") from None
        out = job.replies.open("ab", buffering=0)
    with out:
        try:
            yield out
        finally:
            if new and not out.tell():
                job.replies.unlink()
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _maker(job: Job, model: "MuOmni") -> str:
    """A hash of what the replies come from: the settings and some of each weight."""
    digest = hashlib.sha256(json.dumps([job.sampling, job.system, job.raw]).encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(job: Job, file: BinaryIO) -> tuple[int, int, str | None]:
    """How many replies are there, how many of them are errors, and what made them; cuts a torn last line off.

    Raises:
        UserError: the file holds something else than replies to the first of these prompts.
    """
    kept = whole = errors = 0
    made_by = None
    lines = _lines(job)
    with writing(job.replies), job.replies.open("rb") as before:
        for content in before:
            if not content.endswith(b"\n") and _BEGINNING.startswith(content[: len(_BEGINNING)]):
                break
            reply = _reply(job, kept + 1, content, next(lines, None))
            errors += reply.get("finish_reason") == "error"
            made_by = reply.get("made_by", "")
            kept += 1
            whole += len(content)
        file.truncate(whole)
    return kept, errors, made_by


def _reply(job: Job, number: int, content: bytes, line: _Line | None) -> dict[str, Any]:
    """A reply that is there; refuses one that does not answer the line."""
    try:
        reply: dict[str, Any] = json.loads(content)
        answers = reply["line"], reply["prompt_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        answers = None
    if line is None or answers != (line.number, line.digest):
        raise UserError(
            f"{job.replies}, line {number}: is not a reply to {job.prompts}"
            + (f", line {line.number}" if line is not None else ", which has fewer lines")
            + ": give the name of a new file, or remove this one"
        )
    return reply
