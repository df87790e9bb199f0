"""Real English text that every Python installation carries: the help topics and docstrings of its library.

The demo learns from it, so that nothing has to be downloaded and no licence stands in the way. Topics,
module and class docstrings become plain documents; function docstrings become conversations, so that
the model also learns to answer.
"""

import ast
import json
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
_MIN_CHARS = 40


def write_python_docs(target: Path) -> int:
    """Writes the corpus as JSON lines with `text` or `messages`; returns the bytes of text in it.

    A docstring occurs once, in one form, so that no text is in both training and validation.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("w", encoding="utf-8") as file:
        for row in python_docs():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            texts = [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]
            written += sum(len(text.encode()) for text in texts)
    return written


def python_docs(library: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the corpus, in a fixed order for one Python version.

    Args:
        library: the folder of the standard library; None takes the running Python's.
    """
    seen: set[str] = set()
    for name, text in sorted(_topics().items()):
        if _is_new(text, seen):
            yield {"text": f"{name}\n\n{text.strip()}"}
    root = library if library is not None else Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.intersection(parts) or path.stem.startswith("test"):
            continue
        module = ".".join(parts)[: -len(".py")].removesuffix(".__init__")
        yield from _of_module(path, module, seen)


def _of_module(path: Path, module: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    try:
        with tokenize.open(path) as file:
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        print(f"{path}: left out of the corpus: {error}", file=sys.stderr)
        return
    for node, name in _documented(tree, module):
        text = ast.get_docstring(node) or ""
        if not _is_new(text, seen):
            continue
        if isinstance(node, (ast.Module, ast.ClassDef)):
            yield {"text": f"{name}\n\n{text}"}
        else:
            question = f"What does {name}() do?"
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}]}


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[_Documented, str]]:
    stack: list[tuple[_Documented, str]] = [(tree, module)]
    while stack:
        node, name = stack.pop()
        yield node, name
        stack.extend(
            (child, f"{name}.{child.name}")
            for child in reversed(node.body)
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        )


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _is_new(text: str, seen: set[str]) -> bool:
    key = " ".join(text.split()).lower()
    if len(key) < _MIN_CHARS or key in seen:
        return False
    seen.add(key)
    return True
