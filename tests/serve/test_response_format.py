"""`response_format`: replies parse and hold to their schema; a bad one is a 400 that hurts nobody."""

import json
import sys
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from muomni import MuOmni
from muomni.infer.structured import Grammars
from tests.infer.test_structured import BAD, SCHEMAS
from tests.serve.conftest import Running

SCHEMA = SCHEMAS["object"]


def format_of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True, **more}}


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(slots=3)


def chat(client: Any, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 120, "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 1}, {"speculate": True}, {"deterministic": True, "n": 2}]
)
def test_replies_follow_their_schema(client: TestClient, options: dict[str, Any]) -> None:
    body = chat(client, response_format=format_of(SCHEMA), **options).json()
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_choices_are_followed_each_for_itself_beside_free_ones(client: TestClient) -> None:
    options = {"temperature": 1.2, "seed": 3, "n": 3}
    body = chat(client, response_format=format_of(SCHEMA), **options).json()
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}], ids=["object", "none"]
)
def test_any_json_object(client: TestClient, form: dict[str, Any]) -> None:
    text = chat(client, response_format=form, max_tokens=5).json()["choices"][0]["message"]["content"]
    assert text.startswith("{")


def test_a_reply_that_is_cut_says_length(client: TestClient) -> None:
    choice = chat(client, response_format=format_of(SCHEMA), max_tokens=3).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].startswith("{")


class Colour(BaseModel):
    name: Literal["red", "green"]
    shades: list[Literal["light", "dark"]] = Field(max_length=2)


def test_the_official_client_parses_whole_and_streamed_replies(server: Running) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {
        "model": "nano",
        "messages": [{"role": "user", "content": "Hello"}],
        "response_format": Colour,
        "max_tokens": 100,
    }
    parsed = client.chat.completions.parse(temperature=0, **options).choices[0].message.parsed
    assert isinstance(parsed, Colour)
    with client.chat.completions.stream(temperature=0, **options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed


WIRED = sorted(BAD.keys() - {"very deep", "no JSON", "no text", "lark", "deep lark", "wrong object"})


@pytest.mark.parametrize("name", WIRED)
def test_a_bad_schema_is_a_400_and_the_next_request_works(client: TestClient, name: str) -> None:
    response = chat(client, response_format=format_of(BAD[name]))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 400
    assert error["param"] == "response_format"
    choice = chat(client, response_format=format_of(SCHEMAS["enum"])).json()["choices"][0]
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS["enum"])


@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "no spaces", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}},
        "json",
    ],
)
def test_a_wrong_form_is_a_400_that_names_it(client: TestClient, form: Any) -> None:
    response = chat(client, response_format=form)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("response_format")


def test_without_llguidance_a_request_gets_one_line(
    client: TestClient, omni: MuOmni, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(omni.runtime, "grammars", Grammars())
    response = chat(client, response_format=format_of(SCHEMA))
    assert response.status_code == 400
    assert "needs llguidance" in response.json()["error"]["message"]
