"""What the official client does with answers that are not 200, and how it waits."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.serve.conftest import Running, run
from tests.serve.test_leaving import all_free, until

HI: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
# Each endpoint, called as a user would; `model` is taken from `more`.
CALLS: dict[str, Callable[..., Any]] = {
    "chat": lambda client, **more: client.chat.completions.create(**{**HI, **more}),
    "chat stream": lambda client, **more: client.chat.completions.create(**{**HI, "stream": True, **more}),
    "completions": lambda client, **more: client.completions.create(**{"model": "nano", "prompt": "Hi", **more}),
    "speech": lambda client, **more: client.audio.speech.create(
        **{"model": "nano", "input": "Hi.", "voice": "anna", **more}
    ),
}


def client_of(server: Running, kind: Any = OpenAI, key: str = "none", **more: Any) -> Any:
    shared = {"http_client": server.http} if kind is OpenAI else {}  # closed with the server
    return kind(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **shared, **more})


def raises(error: type[Exception], call: Callable[[], Any]) -> Any:
    with pytest.raises(error) as raised:
        call()
    return raised.value


async def awaited(server: Running, call: Callable[..., Any], key: str = "none", **more: Any) -> Any:
    async with client_of(server, AsyncOpenAI, key) as client:
        return await call(client, **more)


@pytest.mark.parametrize("name", CALLS)
def test_mistakes_are_the_clients_own_exceptions(server: Running, name: str) -> None:
    call, client = CALLS[name], client_of(server)
    for raised in (
        raises(openai.NotFoundError, lambda: call(client, model="other")),
        raises(openai.NotFoundError, lambda: run(awaited(server, call, model="other"))),
    ):
        assert (raised.code, raised.param, raised.type) == ("model_not_found", "model", "invalid_request_error")
    wrong: dict[str, Any] = {"speed": 3.0} if name == "speech" else {"temperature": -1}
    raised = raises(openai.BadRequestError, lambda: call(client, **wrong))
    assert raised.param in wrong
    raises(openai.BadRequestError, lambda: run(awaited(server, call, **wrong)))
    raised = raises(openai.PermissionDeniedError, lambda: call(client, extra_headers={"origin": "http://evil.example"}))
    assert raised.code == "wrong_origin"
    assert all_free(server) and server.engine.speaking == 0


def test_models_are_listed_and_found(server: Running) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").owned_by == "muomni"
    raises(openai.NotFoundError, lambda: client.models.retrieve("other"))


def test_a_wrong_key_is_an_authentication_error(serving: Callable[..., Any]) -> None:
    with serving(keys=("right",)) as server:
        for name, call in CALLS.items():
            raised = raises(openai.AuthenticationError, partial(call, client_of(server, key="wrong")))
            assert raised.code == "invalid_api_key", name
            raises(openai.AuthenticationError, partial(lambda call: run(awaited(server, call, "wrong")), call))
        assert CALLS["chat"](client_of(server, key="right")).choices


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_full_server_is_tried_again_when_it_says(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    waited = []
    with serving(slots=1, max_waiting=0) as server:
        place = server.engine.place()
        place.__enter__()

        def leaves(seconds: float) -> None:
            waited.append(seconds)
            place.__exit__(None, None, None)

        async def leaves_later(seconds: float) -> None:
            leaves(seconds)

        # Only the client's own waiting is replaced.
        if kind == "sync":
            monkeypatch.setattr("openai._base_client.time", Clock(leaves))
            reply = CALLS["chat"](client_of(server, max_retries=1))
        else:
            monkeypatch.setattr("openai._base_client.anyio", Clock(leaves_later))

            async def tries() -> Any:
                async with client_of(server, AsyncOpenAI, max_retries=1) as client:
                    return await CALLS["chat"](client)

            reply = run(tries())
        assert reply.choices
        assert waited == [1.0]


class Clock:
    """A module's `sleep` and what else it has."""

    def __init__(self, sleep: Callable[[float], Any]) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_a_mistake_is_not_tried_again(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(seconds: float) -> None:
        raise AssertionError

    monkeypatch.setattr("openai._base_client.time", Clock(never))
    client = client_of(server, max_retries=2)
    raises(openai.BadRequestError, lambda: CALLS["chat"](client, temperature=-1))
    raises(openai.NotFoundError, lambda: CALLS["chat"](client, model="other"))


def test_a_client_that_waits_no_longer_gives_its_place_back(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(slots=1) as server:
        core = server.engine.engine._core
        step = core.step
        monkeypatch.setattr(core, "step", lambda: (time.sleep(0.1), step()))
        request: dict[str, Any] = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
        client = client_of(server, timeout=0.3)
        raises(openai.APITimeoutError, lambda: CALLS["chat"](client, **request))
        assert until(lambda: all_free(server))

        async def left() -> None:
            async with client_of(server, AsyncOpenAI) as client:
                stream = await CALLS["chat stream"](client, **request)
                await anext(aiter(stream))
                await stream.close()

        run(left())
        assert until(lambda: all_free(server))
