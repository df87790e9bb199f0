"""The weights of the model that a run begins with: those of the recipe's folders; the others are drawn."""

import torch

from muomni.config import OmniConfig
from muomni.config.recipe_model import ModelSpec
from muomni.files import user_path
from muomni.formats.codec import load_codec
from muomni.formats.pretrained import load_model
from muomni.model import OmniModel
from muomni.training.resolve_model import ResolvedModel


def initial_model(resolved: ResolvedModel, config: OmniConfig, seed: int) -> OmniModel:
    """The model with its initial weights.

    Args:
        resolved: says whose weights are taken.
        config: `resolved.fit` of the data.
        seed: of the weights that are drawn.
    """
    spec = resolved.spec
    generator = torch.Generator().manual_seed(seed)
    if resolved.folder is None:
        model = OmniModel(config, generator)
    else:
        model = load_model(resolved.folder)
        if model.config != config:
            model = _refitted(model, config, generator)
    for encoder, wanted in ((model.vision, spec.vision), (model.audio, spec.audio)):
        if wanted is not None and wanted.from_ is not None:
            from muomni.formats.hf_encoders import load_encoder

            load_encoder(encoder, user_path(wanted.from_))  # type: ignore[arg-type]
    _fill_talker(spec, model)
    return model


def _refitted(model: OmniModel, config: OmniConfig, generator: torch.Generator) -> OmniModel:
    """The same weights in a model with other encoders, heads, Talker or dropout; what is new is drawn."""
    changed = OmniModel(config, generator)
    shapes = {name: weight.shape for name, weight in changed.state_dict().items()}
    # A contrastive head of another width is a new one.
    kept = {name: weight for name, weight in model.state_dict().items() if shapes.get(name) == weight.shape}
    changed.load_state_dict(kept, strict=False)
    changed.thinker.tie_weights()
    return changed


def _fill_talker(spec: ModelSpec, model: OmniModel) -> None:
    """Gives a new Talker its codec, and its blocks the weights of the Thinker's last ones where sizes agree."""
    wanted, talker, codec = spec.talker, model.talker, model.codec
    if wanted is None or wanted.codec is None or talker is None or codec is None:
        return
    codec.load_state_dict(load_codec(user_path(wanted.codec)).state_dict())
    if not wanted.from_thinker:
        return
    count = min(len(talker.layers), len(model.thinker.layers))
    for layer, source in zip(talker.layers[-count:], model.thinker.layers[-count:], strict=True):
        weights, shapes = source.state_dict(), layer.state_dict()
        layer.load_state_dict({n: w for n, w in weights.items() if w.shape == shapes[n].shape}, strict=False)
