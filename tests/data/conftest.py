"""A tokenizer that the tests of the data package share."""

from pathlib import Path
from typing import Any

import pytest

from muomni.data import Tokenizer
from tests.data.helpers import STORIES


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(STORIES * 3, 500)


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's folder as `save` writes it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def hugging_face(folder: Path) -> Any:
    """The same folder as transformers reads it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)
