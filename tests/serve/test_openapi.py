"""The document of the endpoints, and requests made from it that try to break them."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi import checks
from starlette.types import ASGIApp, Receive, Scope, Send

from muomni import MuOmni
from muomni.serve.app import make_app
from muomni.serve.engine import ServingEngine
from muomni.serve.settings import ServerSettings

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
def engine(omni: MuOmni) -> Iterator[ServingEngine]:
    chosen = ServerSettings(model_name="nano", hosts=(asgi.HOST,), max_tokens=4)
    engine = ServingEngine(omni, chosen)
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


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data(), mode=st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
def test_what_is_made_from_the_document_is_answered_or_told(
    engine: Any, schema: Any, data: st.DataObject, mode: GenerationMode
) -> None:
    case = data.draw(schema.as_strategy(generation_mode=mode))
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    assert engine.running == engine.speaking == 0
