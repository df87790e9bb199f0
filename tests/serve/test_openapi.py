"""The document of the endpoints, and requests made from it that try to break them."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi import checks
from starlette.types import ASGIApp, Receive, Scope, Send

from muomni.serve.app import make_app
from muomni.serve.engine import ServingEngine
from muomni.serve.settings import ServerSettings
from tests.infer.speech.models import make_speaking

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

EXAMPLES = int(os.environ.get("MUOMNI_FUZZ_EXAMPLES", "40"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


def without_lifespan(app: ASGIApp) -> ASGIApp:
    """The engine runs already, and ends with the test."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await app(scope, receive, send)

    return answering


@pytest.fixture(scope="module")
def engine(small_tokenizer: "Tokenizer") -> Iterator[ServingEngine]:
    chosen = ServerSettings(model_name="nano", hosts=(asgi.HOST,), max_tokens=4)
    engine = ServingEngine(make_speaking(small_tokenizer, senses=True), chosen)
    engine.app = without_lifespan(make_app(engine, chosen))  # type: ignore[attr-defined]
    yield engine
    engine.engine.close()


@pytest.fixture(scope="module")
def schema(engine: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", engine.app)


def test_the_document_has_every_endpoint(schema: Any) -> None:
    document = schema.raw_schema
    assert document["openapi"] == "3.1.0"
    assert {"/health", "/v1/models/{model}", "/v1/chat/completions", "/v1/audio/speech"} <= document["paths"].keys()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"] and chat["operationId"] == "post_v1_chat_completions"
    assert {"application/json", "text/event-stream"} == chat["responses"]["200"]["content"].keys()
    assert document["paths"]["/health"]["get"]["security"] == []


def tame(body: dict[str, Any]) -> dict[str, Any]:
    """With what is rarely drawn right: a name that is served, few choices, and a question at the end."""
    right: dict[str, Any] = {"model": "nano", "n": 1, "voice": "anna", "speed": 1, "response_format": "wav"}
    if "messages" in body:
        right |= {"messages": [*body["messages"][:1], {"role": "user", "content": "Hi"}], "response_format": None}
    return {**body, **{key: value for key, value in right.items() if key in body}}


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data(), mode=st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
def test_what_is_made_from_the_document_is_answered_or_told(
    engine: Any, schema: Any, data: st.DataObject, mode: GenerationMode
) -> None:
    case = data.draw(schema.as_strategy(generation_mode=mode))
    if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and data.draw(st.booleans()):
        case.body = tame(case.body)
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    assert engine.running == engine.speaking == 0
