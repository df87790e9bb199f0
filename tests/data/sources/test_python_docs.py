"""The demo's corpus."""

import json

from muomni.data.sources.python_docs import python_docs, write_python_docs


def test_docstrings_become_documents_and_questions(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text('"""A package that holds a few things for the test of this."""\n')
    (tmp_path / "pack" / "inner.py").write_text(
        'class Box:\n    """Holds whatever one puts into it, as long as it fits in."""\n'
        '    def open(self):\n        """Opens the box so that one can see what is in it now."""\n'
        "def bare():\n    pass\n"
        'def short():\n    """Too short."""\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x.py").write_text('"""A test module whose text must not be in the corpus at all."""\n')
    (tmp_path / "broken.py").write_text("def (")
    rows = [row for row in python_docs(tmp_path) if "pack" in json.dumps(row)[:60]]
    assert rows == [
        {"text": "pack\n\nA package that holds a few things for the test of this."},
        {"text": "pack.inner.Box\n\nHolds whatever one puts into it, as long as it fits in."},
        {
            "messages": [
                {"role": "user", "content": "What does pack.inner.Box.open() do?"},
                {"role": "assistant", "content": "Opens the box so that one can see what is in it now."},
            ]
        },
    ]


def test_this_python_carries_megabytes_of_text_and_none_of_it_twice(tmp_path):
    path = tmp_path / "docs" / "corpus.jsonl"
    size = write_python_docs(path)
    assert size > 1_000_000
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [row["messages"][-1]["content"] for row in rows if "messages" in row]
    assert len(answers) > 1000 and len(rows) - len(answers) > 500
    assert len({" ".join(answer.split()).lower() for answer in answers}) == len(answers)
