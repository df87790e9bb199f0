import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

from muomni.serve.page_files import Page

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Names of languages, which nobody fetches.
_NAMESPACES = {"http://www.w3.org/2000/svg", "http://localhost"}


def test_the_page_needs_nothing_from_elsewhere(in_process: Callable[..., Any]) -> None:
    paths = Page().paths
    assert {"/", "/app.js", "/sound/capture-worklet.js", "/style/base.css"} <= paths
    client = in_process(keys=("k",))  # the page asks for the key, so it comes without one
    for path in sorted(paths):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(_TYPES[path.rpartition(".")[2] if path != "/" else "html"])
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; connect-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert set(re.findall(r"https?://[\w./]+", answer.text)) <= _NAMESPACES, path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\son\w+=|eval\(", answer.text), path
        for name in re.findall(r'(?:from|src|href)[ =]"([^"#]+)', answer.text):
            assert client.get(urljoin(path, name)).status_code == 200, (path, name)
