"""An exception at any line of the engine: nothing is lost, nothing comes twice, and no later reply is a wrong one."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from muomni import MuOmni
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, sample, structured
from muomni.infer.engine import core, engine, scheduler
from muomni.infer.sampling import draw_uniform, make_random
from muomni.infer.streaming import TextStream
from muomni.model import SlotCache, kv_cache
from tests.infer.engine.test_engine import ask, make_model, new_engine
from tests.infer.letters import compiled

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

Place = tuple[str, int]


class Remembers(EagerRunner):
    """Stores token ids in the place of keys; logits are random numbers made from all that is stored before them."""

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        stored = self._cache.keys[0, :, 0, :, 0]
        stored[slots, positions] = tokens.float()
        rows = [stored[slots[i], : positions[i] + 1].tolist() for i in wanted.tolist()]
        return torch.tensor([random_logits(row) for row in rows])


def random_logits(tokens: Sequence[float]) -> list[float]:
    source = random.Random(repr([int(token) for token in tokens]))
    return [source.uniform(-4, 4) for _ in range(30)]


def alone(prompt: Sequence[int], params: SamplingParams) -> list[int]:
    whole = list(prompt)
    source = make_random(params.seed, 0)
    constraint = None if params.grammar is None else GRAMMAR.begin()
    for _ in range(params.max_new_tokens):
        reply = whole[len(prompt) :]
        counts = torch.tensor([[2 * reply.count(token) + (token in prompt) for token in range(30)]])
        uniform = torch.tensor([draw_uniform(source)])
        logits = torch.tensor([random_logits(whole)])
        if constraint is not None:
            constraint.restrict(logits, reply)
        whole.append(int(sample(logits, params, uniform, counts)))
    return whole[len(prompt) :]


TEXT = "start: /([a-e][0-9]){9}/"
GRAMMAR = compiled(TEXT)
COMMON = [(7 * i + 3) % 30 for i in range(20)]
WARM = SamplingParams(temperature=0, max_new_tokens=3)
PARAMS = (
    SamplingParams(temperature=0, max_new_tokens=7),
    SamplingParams(
        temperature=1.0, seed=4, max_new_tokens=6, repetition_penalty=1.5, frequency_penalty=1.5, logprobs=2
    ),
    SamplingParams(temperature=0, max_new_tokens=3, logit_bias={3: 0.5}, grammar=TEXT),
)
PROMPTS = [[*COMMON, 1, 2], [*COMMON, 3, 4], [*COMMON[:17], 5]]
WATCHED = {Path(str(module.__file__)).name for module in (core, engine, scheduler, structured)}
FUNCTIONS = {(Path(str(kv_cache.__file__)).name, "copy")}


def traced(work: Callable[[], object], hit: Callable[[Place], None]) -> None:
    """Calls `hit` before each line of the engine that `work` comes to."""

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            hit((frame.f_code.co_filename, frame.f_lineno))
        return lines

    def calls(frame: FrameType, *_: Any) -> Any:
        name = Path(frame.f_code.co_filename).name
        if "muomni" not in frame.f_code.co_filename:
            return None
        return lines if name in WATCHED or (name, frame.f_code.co_name) in FUNCTIONS else None

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        work()
    finally:
        sys.settrace(before)


class Interruption:
    """Raises once, the `count`-th time that a line is come to; counts what it sees."""

    def __init__(self, place: Place | None = None, count: int = 1) -> None:
        self.seen: Counter[Place] = Counter()
        self.place, self.count = place, count

    def __call__(self, place: Place) -> None:
        self.seen[place] += 1
        if place == self.place and self.seen[place] == self.count:
            raise KeyboardInterrupt


def run(model: Any, hit: Interruption, expected: list[list[int]]) -> Engine:
    """Some requests that begin alike, one of them cancelled, on an engine that is interrupted where `hit` raises."""
    made = new_engine(model, slots=3, wrap=Remembers, chunk=16, chunk_alone=24)
    first = made.submit(ask([*COMMON, 9], WARM))
    requests = [
        ask(prompt, params, constraint=None if params.grammar is None else GRAMMAR.begin())
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
    ]
    gone = ask([8, 7], PARAMS[0])

    def go_on(until: Callable[[], bool]) -> None:
        while not until():
            made.step()

    def work(part: Callable[[], object]) -> None:
        try:
            traced(part, hit)
        except KeyboardInterrupt:
            part()

    work(lambda: go_on(lambda: first.finished))
    for request in (*requests, gone):
        made.submit(request)
    work(lambda: go_on(lambda: bool(requests[0].tokens)))
    work(lambda: made.cancel(gone))
    work(lambda: go_on(lambda: not made.active))
    assert [request.tokens for request in requests] == expected
    assert [told.token for told in requests[1].logprobs] == expected[1]
    assert gone.finished and gone.cancelled and all(one.reason == "length" and one.error is None for one in requests)
    return made


def whole(made: Engine) -> bool:
    """Whether the index names what it holds, and every slot is free."""
    kept = made._scheduler.prefix
    anew = scheduler.PrefixIndex(len(kept.tokens))
    for slot, tokens in enumerate(kept.tokens):
        anew.insert(slot, tokens)
    same = {key: set(value) for key, value in anew._slots.items()} == {k: set(v) for k, v in kept._slots.items()}
    return same and made._scheduler._slots.free == made.cache.slots


@pytest.mark.parametrize("again", [False, True], ids=["first", "last"])
def test_an_exception_at_any_line_of_a_step_changes_nothing(again: bool) -> None:
    model = make_model(num_hidden_layers=1)
    expected = [alone(prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    later = [[*COMMON, 1, 2, *expected[0], 6], [*COMMON, 3, 4, 6], [*COMMON, 9, 6]]
    replies = [alone(prompt, WARM) for prompt in later]
    dry = Interruption()
    run(model, dry, expected)
    names = {Path(file).name for file, _ in dry.seen}
    assert {"core.py", "engine.py", "scheduler.py", "kv_cache.py", "structured.py"} <= names
    for place, times in dry.seen.items():
        if again and times == 1:
            continue
        hit = Interruption(place, times if again else 1)
        made = run(model, hit, expected)
        assert hit.seen[place] >= hit.count, "was not interrupted"
        made.step()  # mends what the last line of all has left
        assert whole(made), place
        # What it remembers of the prompts is right: replies that begin with it are.
        asked = [made.submit(ask(prompt, WARM)) for prompt in later]
        assert [made.finish(one).tokens for one in asked] == replies, place


def test_text_that_stops_a_reply_is_found_where_an_interruption_cuts_it(nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    sampling: dict[str, Any] = {"seed": 3, "max_new_tokens": 20, "ignore_eos": True}
    text = model.complete("The cat", **sampling).text
    stop = text[6:9]
    expected = model.complete("The cat", stop=stop, **sampling)
    tokenizer: Tokenizer = model.tokenizer  # type: ignore[assignment]
    for place in range(1, 12):
        made = new_engine_of(model)
        prompt = model.runtime.prepare(model, tokenizer, [("The cat", SamplingParams(stop=stop, **sampling))], raw=True)
        stream = TextStream(made, tokenizer, prompt[0])
        request = stream._request
        on_token = request.on_token
        assert on_token is not None
        calls = [0]

        def interrupted(token: int, place: int = place, calls: list[int] = calls, push: Any = on_token) -> bool:
            calls[0] += 1
            stopped = push(token)
            if calls[0] == place:
                raise KeyboardInterrupt
            return bool(stopped)

        request.on_token = interrupted
        while made.active:
            try:
                made.step()
            except KeyboardInterrupt:
                continue
        reply = stream.finish()
        assert (reply.text, reply.tokens, reply.finish_reason) == (expected.text, expected.tokens, "stop")


def new_engine_of(model: MuOmni) -> Engine:
    cache = SlotCache(model.config.thinker, 1, 64)
    return Engine(model, cache, Runners(EagerRunner(model, cache)))


def test_numbers_are_drawn_once_also_after_an_interruption() -> None:
    for seed in (5, None):
        request = Request(prompt=[1], params=SamplingParams(seed=seed), limit=9)
        first = request.number()
        request.tokens.append(3)
        second = request.number()
        request.rewind()
        assert request.number() == second != first
        request.tokens.clear()
        request.rewind()
        assert request.number() == first
