"""The table of endpoints: the routes, what the guard asks for, and the OpenAPI document are made from it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from muomni import __version__
from muomni.serve.answers import ErrorAnswer

JSON = "application/json"
_FORM = "multipart/form-data"


@dataclass(frozen=True)
class Operation:
    """One endpoint.

    Attributes:
        path: as Starlette writes it.
        handler: its docstring's first line describes it.
        method: of HTTP.
        body: of the request, or None.
        answer: the JSON of a 200, or None where `media_types` has no JSON.
        media_types: of a 200.
        needs_key: where the server has keys.
        is_upload: the body is a multipart form.
    """

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    method: str = "GET"
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    media_types: tuple[str, ...] = (JSON,)
    needs_key: bool = True
    is_upload: bool = False

    @property
    def route(self) -> Route:
        """For Starlette."""
        return Route(self.path, self.handler, methods=[self.method])

    def described(self, references: dict[Any, Any], error: Any) -> dict[str, Any]:
        """As OpenAPI describes it."""
        summary, _, rest = (self.handler.__doc__ or "").partition("\n")[0].partition(": ")
        content = {kind: {} if kind != JSON else {"schema": references[self.answer]} for kind in self.media_types}
        errors = {"description": "What was wrong.", "content": {JSON: {"schema": error}}}
        shown: dict[str, Any] = {
            "summary": rest or summary,
            "operationId": f"{self.method.lower()}{self.path.translate(_NAME)}",
            "responses": {"200": {"description": "The answer.", "content": content}, "4XX": errors, "5XX": errors},
        }
        if self.body is not None:
            kind = _FORM if self.is_upload else JSON
            shown["requestBody"] = {"required": True, "content": {kind: {"schema": references[self.body]}}}
        if "{" in self.path:
            name = self.path.partition("{")[2].partition(":")[0]
            schema = {"type": "string", "minLength": 1}
            shown["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}]
        if not self.needs_key:
            shown["security"] = []
        return shown


_NAME = str.maketrans({"/": "_", "{": None, "}": None, ":": "_"})


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all endpoints."""
    kinds = {kind for each in operations for kind in (each.body, each.answer) if kind is not None} | {ErrorAnswer}
    named = sorted(kinds, key=lambda kind: kind.__name__)
    references, schemas = models_json_schema(
        [(kind, "validation") for kind in named], ref_template="#/components/schemas/{model}"
    )
    by_kind: dict[Any, Any] = {kind: reference for (kind, _), reference in references.items()}
    paths: dict[str, Any] = {}
    for each in operations:
        shown = each.described(by_kind, by_kind[ErrorAnswer])
        paths.setdefault(each.path.replace(":path}", "}"), {})[each.method.lower()] = shown
    return {
        "openapi": "3.1.0",
        "info": {"title": "μOmni", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }
