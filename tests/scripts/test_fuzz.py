"""The fuzz command finds what it is to find, and the same case again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def wrong(path: Path) -> None:
    if path.read_bytes()[:2] != b'{"':
        raise KeyError("not ours")


def large(path: Path) -> None:
    bytearray(3 << 30)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (wrong, "KeyError at ?"),
        (large, "memory in planted"),
        (lambda path: time.sleep(60), "hang in planted"),
        (lambda path: None, ""),
    ],
)
def test_what_is_planted_is_found(read: Callable[[Path], object], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fuzz
    from fuzz_targets import Target

    def planted(path: Path) -> object:
        return read(path)

    targets = [Target("chats", "planted", ".json", [b'{"a": [1, {"b": "c"}]}'], planted, text=True)]
    run: Any = fuzz.Run(targets, 0, 1.0)
    cases = 40 if read is wrong else 1
    run.run(cases, 1, time.monotonic() + 60)
    assert list(run.findings) == ([kind] if kind else []) and run.done["chats"] == cases
    for finding in run.findings.values():
        case = fuzz.draw_case(targets, 0, finding.number)
        assert case == fuzz.draw_case(targets, 0, finding.number)
        found = fuzz.isolated(fuzz.smaller(case, finding.kind, 1.0), 1.0)
        assert found is not None and found[0] == finding.kind
