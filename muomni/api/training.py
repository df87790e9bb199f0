"""Training from Python, as `muomni train` does it: `from muomni import train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muomni.config import Recipe, parse
from muomni.config.loader import RUNS, find_run, merge

if TYPE_CHECKING:
    from muomni.training.stage import TrainResult


def train(
    recipe: Recipe | str | Path,
    run: str | Path | None = None,
    *,
    resume: bool = False,
    resume_from: str | Path | None = None,
    allow_changed: bool = False,
    **changes: Any,
) -> "TrainResult":
    """Trains one stage, or resumes it.

    ```python
    from muomni import train

    result = train("text-nano", "runs/mine", data={"train": ["stories.jsonl"]}, max_steps=200)
    print(result.progress.best_loss, result.metrics("val")[-1]["loss"])
    ```

    In the main thread Ctrl-C and SIGTERM end the run after the current step and save it. In another thread no signal
    is listened to, and the run goes on to its end. Random numbers are those of the process, so run one training of a
    process at a time.

    Args:
        recipe: a recipe, its file, the name of a bundled one, or a run folder, whose recipe is taken.
        run: the run folder; `runs/NAME`, or the run folder that is given as `recipe`, when left out.
        resume: go on from the last checkpoint, bit by bit as if the run had never stopped.
        resume_from: go on from this checkpoint of the run instead.
        allow_changed: go on although recipe or data are not what they were.
        changes: keys of the recipe; objects are merged into the recipe's, as `optimizer={"lr": 3e-4}`.

    Returns:
        The run: its folder, where it stands, memory, and `metrics()`.

    Raises:
        UserError: recipe, data or folders cannot be used.
        CheckpointError: a checkpoint does not load or could not be written.
        TrainingError: the loss stays non-finite.
        MemoryShortageError: memory ran out; see the recipe's `on_oom`.
    """
    folder = None if run is None else Path(run)
    if isinstance(recipe, Recipe):
        values = merge(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), changes)
        stage, folder = parse(Recipe, values, "the recipe"), folder or RUNS / recipe.name
    else:
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
        stage, folder = find_run(str(recipe), overrides, folder)
    from muomni.api.train_sampler import make_sampler
    from muomni.training.stage import train as run_stage

    start = None if resume_from is None else Path(resume_from)
    return run_stage(
        stage,
        folder,
        resume=resume,
        resume_from=start,
        allow_changed=allow_changed,
        make_sampler=make_sampler,
    )
