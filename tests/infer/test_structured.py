"""Replies that follow a grammar: they parse and hold to their schema, and nobody else's reply changes."""

import json
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni import MuOmni
from muomni.errors import GrammarError, PromptError
from muomni.infer import EagerRunner, Engine, Request, SamplingParams, generate
from muomni.infer.structured import Constraint, Grammars
from tests.infer.engine.test_engine import ask, make_model, new_engine
from tests.infer.letters import END, compiled, text_of

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "green", 3, None, True]},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "number": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
    "nested": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
            "at": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
        },
        "required": ["tags", "at"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "maximum": 99, "minimum": 0}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    "unicode": {"type": "string", "minLength": 3, "maxLength": 5, "pattern": "^[äé日本🎉]+$"},
    "date": {"type": "string", "format": "date"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_replies_follow_their_schema(omni: MuOmni, name: str) -> None:
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "top_k": 0, "seed": 1},
        {"temperature": 1.5},
    ]
    replies = omni.chat_batch(["Hello"] * 3, sampling=settings, grammar=SCHEMAS[name], max_new_tokens=200)
    for reply in replies:
        assert reply.finish_reason == "stop"
        jsonschema.validate(json.loads(reply.text), SCHEMAS[name])


def test_a_reply_that_is_cut_is_the_beginning_of_one_that_is_not(omni: MuOmni) -> None:
    whole = omni.chat("Hello", grammar=SCHEMAS["nested"], temperature=0, max_new_tokens=200)
    for count in (1, 4, len(whole.tokens) - 1):
        reply = omni.chat("Hello", grammar=SCHEMAS["nested"], temperature=0, max_new_tokens=count)
        assert reply.finish_reason == "length" and reply.tokens == whole.tokens[:count]
    assert whole.finish_reason == "stop"


def test_a_text_in_larks_form_is_followed_by_all_ways_in(omni: MuOmni) -> None:
    grammar = 'start: ("yes" | "no") " " /[a-c]{2}/'
    texts = [omni.chat("Hi", grammar=grammar, seed=3).text, omni.complete("Hi", grammar=grammar, seed=3).text]
    stream = omni.stream("Hi", grammar=grammar, seed=3)
    texts.append("".join(chunk.text for chunk in stream))
    assert omni.tokenizer is not None
    ids = torch.tensor([omni.encode("Hi")] * 2)
    for use_cache in (True, False):
        rows = omni.generate(ids, grammar=grammar, seed=3, use_cache=use_cache)
        texts += [omni.tokenizer.decode(row) for row in rows.tolist()]
    assert all(len(text.split()) == 2 and text.split()[0] in ("yes", "no") for text in texts)
    assert texts[0] == texts[2] == texts[3] == texts[5] and texts[4] == texts[6]


def nested(depth: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {}


BAD: dict[str, Any] = {
    "unclosed pattern": {"type": "string", "pattern": "(["},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "deep pattern": {"type": "string", "pattern": "(" * 3000 + "a" + ")" * 3000},
    "only itself": {"$ref": "#"},
    "in a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "remote": {"$ref": "http://127.0.0.1:9/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "deep": nested(70),
    "very deep": nested(900),
    "unknown type": {"type": "strin"},
    "unknown format": {"type": "string", "format": "nope"},
    "not supported": {"type": "array", "uniqueItems": True},
    "nothing fits": {"type": "integer", "minimum": 5, "maximum": 3},
    "product": {"allOf": [{"anyOf": [{"properties": {f"{a}_{b}": {}}} for b in range(8)]} for a in range(10)]},
    "large": {"enum": [f"number {number}" for number in range(10_000)]},
    "no JSON": {"enum": [float("nan")]},
    "no text": {"enum": [object()]},
    "lark": "start: (",
    "deep lark": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "wrong object": '{"grammars": 3}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_grammar_that_cannot_be_followed_is_refused_before_anything_is_computed(omni: MuOmni, name: str) -> None:
    with pytest.raises(GrammarError) as error:
        omni.runtime.prepare(omni, omni.tokenizer, [("Hi", SamplingParams(grammar=BAD[name]))])
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


# Large numbers cost nothing: they are counted, not written out.
HUGE: dict[str, Any] = {
    "anything": {},
    "minLength": {"type": "string", "minLength": 10**9},
    "minItems": {"type": "array", "minItems": 10**9},
    "repeats": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "endless": {"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}}, "$ref": "#/$defs/n"},
    "long chain": {
        "$defs": {**{f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(1500)}, "a1500": {"type": "null"}},
        "$ref": "#/$defs/a0",
    },
}


@pytest.mark.parametrize("name", HUGE)
def test_a_grammar_of_any_size_costs_little(omni: MuOmni, name: str) -> None:
    reply = omni.chat("Hi", grammar=HUGE[name], max_new_tokens=40, temperature=0)
    assert len(reply.tokens) <= 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grammar": ""}, "grammar = ''"),
        ({"grammar": 3}, "a JSON schema"),
        ({"grammar": {}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        SamplingParams(**settings)


def test_settings_with_a_grammar_can_be_compared_and_hashed() -> None:
    schema = {"type": "object"}
    first, second = SamplingParams(grammar=schema), SamplingParams(grammar=dict(schema))
    schema["type"] = "array"
    assert first == second and hash(first) == hash(second) and first != SamplingParams(grammar=schema)


def test_without_llguidance_one_line_says_what_to_install(omni: MuOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(omni.runtime, "grammars", Grammars())
    with pytest.raises(GrammarError, match="needs llguidance"):
        omni.chat("Hi", grammar={})


GRAMMARS = [
    None,
    {"type": "array", "items": {"enum": ["ab", 12, "abc"]}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"], "additionalProperties": False},
    "start: /[a-e]{2,6}/ (/[0-9]+/)?",
]
COMPILED = [None if grammar is None else compiled(grammar) for grammar in GRAMMARS]
MODEL = make_model(5)
ROWS = st.tuples(
    st.integers(0, len(GRAMMARS) - 1),
    st.lists(st.integers(0, 28), min_size=1, max_size=6),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0, 1.0]),
            "top_k": st.sampled_from([0, 3]),
            "top_p": st.sampled_from([1.0, 0.7]),
            "repetition_penalty": st.sampled_from([1.0, 1.4]),
            "seed": st.integers(0, 3),
            "max_new_tokens": st.integers(1, 25),
        }
    ),
)


def request_of(kind: int, prompt: list[int], settings: dict[str, Any], **options: Any) -> Request:
    params = SamplingParams(grammar=GRAMMARS[kind], **settings)
    grammar = COMPILED[kind]
    constraint = None if grammar is None else grammar.begin()
    return ask(prompt, params, ends=frozenset({END}), constraint=constraint, **options)


def expected(kind: int, prompt: list[int], settings: dict[str, Any]) -> list[int]:
    params = SamplingParams(grammar=GRAMMARS[kind], **settings)
    return generate(MODEL, torch.tensor([prompt]), params, end_ids=[END], grammar=COMPILED[kind])[0].tolist()


class ManySteps(EagerRunner):
    can_greedy = True


@settings(max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=4), st.booleans())
def test_rows_with_and_without_a_grammar_are_what_they_are_alone(rows: list[Any], batch_invariant: bool) -> None:
    engine = new_engine(MODEL, slots=3, wrap=ManySteps)
    requests = [engine.submit(request_of(*row, batch_invariant=batch_invariant)) for row in rows]
    for request, row in zip(requests, rows, strict=True):
        assert engine.finish(request).tokens == expected(*row)


def test_rows_of_the_plain_loop_end_separately() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    grammar, params = COMPILED[1], SamplingParams(grammar=GRAMMARS[1], seed=4, max_new_tokens=30)
    rows = generate(MODEL, ids, params, end_ids=[END], grammar=grammar).tolist()
    assert len({row.index(END) for row in rows}) > 1
    assert all(isinstance(json.loads(text_of(row)), list) for row in rows)


def test_the_plain_loop_needs_the_grammar_compiled() -> None:
    with pytest.raises(PromptError, match="compiled"):
        generate(MODEL, torch.tensor([[1]]), SamplingParams(grammar={}))


class Script:
    """Drafts what it is told to: the reply that will come, with a mistake now and then."""

    def __init__(self, reply: list[int], wrong: int) -> None:
        self.reply, self.wrong, self.once_s, self.accepted = reply, wrong, 0.0, 0

    def begin(self, _: Any) -> "Script":
        return self

    def draft(self, new: Any, _: int, most: int) -> list[int]:
        draft = self.reply[len(new) : len(new) + min(5, most)]
        return [(token + 1) % 30 if (len(new) + n) % self.wrong == 0 else token for n, token in enumerate(draft)]

    def learn(self, _: int, accepted: int, *_more: Any) -> None:
        self.accepted += accepted

    def close(self) -> None:
        pass


@settings(max_examples=40)
@given(st.lists(ROWS, min_size=1, max_size=3), st.integers(2, 9))
def test_with_drafts_the_reply_is_the_same(rows: list[Any], wrong: int) -> None:
    engine = new_engine(MODEL, slots=3)
    requests, scripts = [], []
    for kind, prompt, settings_ in rows:
        greedy = {"temperature": 0, "max_new_tokens": settings_["max_new_tokens"]}
        reply = expected(kind, prompt, greedy)
        scripts.append(Script(reply, wrong))
        requests.append((engine.submit(request_of(kind, prompt, greedy, speculate=scripts[-1])), reply))
    for request, reply in requests:
        assert engine.finish(request).tokens == reply


def test_drafts_are_accepted() -> None:
    greedy = {"temperature": 0, "max_new_tokens": 25}
    reply = expected(2, [1, 2, 3], greedy)
    script = Script(reply, 100)
    engine = new_engine(MODEL)
    engine.finish(engine.submit(request_of(2, [1, 2, 3], greedy, speculate=script)))
    assert script.accepted >= len(reply) // 2 and engine.steps < len(reply)


def failing_after(count: int, whom: Constraint, at: list[int]) -> Callable[..., None]:
    restrict = Constraint.restrict

    def fail(self: Constraint, logits: Any, reply: Any, draft: Any = ()) -> None:
        if self is whom and len(reply) >= count:
            at.append(len(reply))
            raise GrammarError("too complex")
        restrict(self, logits, reply, draft)

    return fail


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_a_matcher_that_fails_ends_its_own_request_alone(
    monkeypatch: pytest.MonkeyPatch, count: int, speculate: bool
) -> None:
    settings = {"temperature": 0, "max_new_tokens": 20}
    rows = [(2, [1, 2], settings), (2, [3, 4], settings), (0, [5, 6], settings)]
    replies = [expected(*row) for row in rows]
    guessers = [Script(reply, 100) if speculate else False for reply in replies]
    engine: Engine = new_engine(MODEL)
    requests = [request_of(*row, speculate=guesser) for row, guesser in zip(rows, guessers, strict=True)]
    assert requests[0].constraint is not None
    at: list[int] = []
    monkeypatch.setattr(Constraint, "restrict", failing_after(count, requests[0].constraint, at))
    for request in requests:
        engine.submit(request)
    with pytest.raises(GrammarError, match="too complex"):
        engine.finish(requests[0])
    assert count <= len(requests[0].tokens) == at[-1] < len(replies[0])
    assert [engine.finish(request).tokens for request in requests[1:]] == replies[1:]
    assert engine._scheduler._slots.free == 3


def test_what_becomes_too_complex_on_the_way_is_an_error_in_words() -> None:
    constraint = compiled("start: /[a-e]+x/").begin()
    constraint.restrict(torch.zeros(1, 30), [0])
    with pytest.raises(GrammarError, match="cannot be followed further"):
        constraint.restrict(torch.zeros(1, 30), [0, 10])
