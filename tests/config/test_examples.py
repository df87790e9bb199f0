"""The example pipelines load; what they name is made by what they say."""

from pathlib import Path

import pytest

from muomni.config import Recipe
from muomni.config.pipeline import load_pipeline

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads(path: Path) -> None:
    pipeline = load_pipeline(str(path))
    assert pipeline.name == path.stem
    assert [type(stage.work) for stage in pipeline.stages].count(Recipe) >= 3
