"""The code stays readable: short files, short functions, a docstring on everything public."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "muomni").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE = 500
MAX_FUNCTION = 80
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def gives_reason(text: str) -> bool:
    """A file may be longer when the docstring at its top says why, in a sentence beginning "Long because"."""
    return "Long because" in (ast.get_docstring(ast.parse(text)) or "")


def long_functions(tree: ast.AST) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION]


def undocumented(module: ast.Module) -> list[str]:
    """Public classes and functions without a docstring, and the module itself."""
    public = [n for n in module.body if isinstance(n, Function | ast.ClassDef) and not n.name.startswith("_")]
    missing = [node.name for node in public if ast.get_docstring(node) is None]
    return missing if ast.get_docstring(module) else ["the module itself", *missing]


@pytest.mark.parametrize("path", PACKAGE + TESTS, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_FILE or gives_reason(text), f"{lines} lines; split it, or say at its top why not"
    assert long_functions(ast.parse(text)) == [], f"functions of more than {MAX_FUNCTION} lines"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_checks_can_fail() -> None:
    long = "def f():\n" + "    x = 1\n" * MAX_FUNCTION
    assert long_functions(ast.parse(long)) == ["f"]
    code = 'class A: ...\nclass B:\n    "doc"\ndef _p(): ...\ndef f(): ...'
    assert undocumented(ast.parse(code)) == ["the module itself", "A", "f"]
    assert gives_reason('"""Long because it is one table."""')
    assert not gives_reason("# Long because\n")
