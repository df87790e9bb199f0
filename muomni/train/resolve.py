"""A recipe resolved, once, before anything is allocated: what it leaves open, folders and this machine decide."""

from dataclasses import dataclass
from pathlib import Path

from muomni.accel.device import pick_device
from muomni.accel.execution_plan import Plan, make_plan
from muomni.accel.measurements.verdicts import load_verdicts
from muomni.config import Recipe, read_json
from muomni.train.resolve_model import ResolvedModel, resolve_model

DECLINED = "declined.json"


@dataclass(frozen=True)
class ResolvedRun:
    """A run before anything is allocated.

    Attributes:
        recipe: as it was asked for; each part of the run takes its own section.
        model: the sizes of the model, and whose weights it begins with.
        plan: device, precision and the other optimizations: what every `auto` became.
    """

    recipe: Recipe
    model: ResolvedModel
    plan: Plan


def resolve(recipe: Recipe, run: Path | None = None) -> ResolvedRun:
    """Decides what a recipe leaves open.

    Args:
        recipe: of a model, not of a codec.
        run: the folder of a run that is resumed: it declines what it declined when it began. Otherwise what was
            measured to lose with this model here is declined, see `make_plan`.

    Raises:
        ConfigError: something that the recipe names does not work here, or its parts do not go together.
        UserError: a folder that the recipe names holds no model or codec.
    """
    model = resolve_model(recipe)
    if run is None:
        device = pick_device(recipe.device)
        plan = make_plan(recipe, model.config, load_verdicts(device, model.config.thinker))
    else:
        path = run / DECLINED
        as_begun = recipe.replace(**read_json(path)) if path.is_file() else recipe
        plan = make_plan(as_begun, model.config)
    return ResolvedRun(recipe, model, plan)
