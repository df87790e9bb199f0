"""Sampling settings of OpenAI's API, through the server."""

from typing import Any

import pytest
from openai import OpenAI

from muomni import MuOmni
from tests.serve.conftest import Running


@pytest.mark.parametrize(
    "settings",
    [
        {"frequency_penalty": -2.0, "presence_penalty": -2.0, "temperature": 0},
        {"presence_penalty": -2.0, "frequency_penalty": -1.0, "temperature": 0.7, "seed": 5},
        {"logit_bias": {str(token): -100 for token in range(60)}, "temperature": 0},
    ],
)
def test_penalties_and_biases_are_those_of_chat(client: OpenAI, alone: MuOmni, settings: dict[str, Any]) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello there!"}]
    reply = client.chat.completions.create(model="nano", messages=messages, max_tokens=12, **settings)
    expected = alone.chat("Hello there!", max_new_tokens=12, **settings)
    assert reply.choices[0].message.content == expected.text
    assert expected.text != alone.chat("Hello there!", max_new_tokens=12, temperature=0).text


def test_a_bias_bans_a_token_or_leaves_no_other(client: OpenAI, alone: MuOmni) -> None:
    assert alone.tokenizer is not None
    cat: dict[str, Any] = {"model": "nano", "prompt": "The cat", "max_tokens": 6}
    replies = client.completions.create(**cat, temperature=1.0, n=3, logit_bias={"41": 100})
    assert {choice.text for choice in replies.choices} == {alone.tokenizer.decode([41] * 6)}
    first = alone.complete("The cat", max_new_tokens=1, temperature=0).tokens[0]
    banned = alone.complete("The cat", max_new_tokens=6, temperature=0, logit_bias={first: -100})
    reply = client.completions.create(**cat, temperature=0, logit_bias={str(first): -100})
    assert first not in banned.tokens and reply.choices[0].text == banned.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frequency_penalty", 2.5),
        ("frequency_penalty", "much"),
        ("presence_penalty", -3),
        ("logit_bias", {"7": 101}),
        ("logit_bias", {"cat": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", {"7": None}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("logit_bias", [1]),
        ("temperature", -1),
        ("stop", [""]),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(server: Running, key: str, value: Any) -> None:
    reply = server.chat(**{key: value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"].startswith(key) and len(error["message"]) < 500
    assert server.chat().status_code == 200


@pytest.mark.parametrize("settings", [{"frequency_penalty": 1}, {"logit_bias": {"1": 1}}, {"temperature": 1}])
def test_speculation_of_what_is_not_greedy_is_refused(server: Running, settings: dict[str, Any]) -> None:
    reply = server.chat(speculate=True, **settings)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "speculate")
