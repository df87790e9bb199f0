"""The page at `/`: static files, with a policy that lets them load and call this server alone."""

from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_POLICY = (
    "default-src 'self'; connect-src 'self'; img-src 'self' data: blob:; media-src data: blob:; worker-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Page(StaticFiles):
    """The files of the page.

    Attributes:
        paths: of their URLs.
    """

    def __init__(self) -> None:
        folder = Path(__file__).parent / "page"
        super().__init__(directory=folder, html=True)
        files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        self.paths = frozenset({"/", *(f"/{file}" for file in files)})

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file; browsers ask each time whether it has changed."""
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-cache"
        return response
