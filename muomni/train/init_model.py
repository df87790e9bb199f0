"""The model a run begins with: sizes, then weights, from a preset or an earlier run; encoders and Talker may be new."""

import math
from pathlib import Path

import torch

from muomni.config import OmniConfig, Recipe
from muomni.config.encoders import AudioEncoderConfig, VisionEncoderConfig
from muomni.config.recipe import ModelParts
from muomni.config.recipe_model import AudioSpec, ModelSpec, VisionSpec
from muomni.data import SPECIAL, Tokenizer
from muomni.errors import ConfigError
from muomni.formats.pretrained import load_model, read_config, read_quantization
from muomni.formats.tensors import resolve_folder
from muomni.model import OmniModel
from muomni.train.init_talker import check_talker, fill_talker, with_talker

# What may be said anew of an encoder that comes with its weights.
_VISION_MAY_CHANGE = {"dropout", "min_tokens", "max_tokens", "projection_dim"}
_AUDIO_MAY_CHANGE = {"dropout", "max_seconds", "ctc"}


def check_model(recipe: Recipe) -> None:
    """Finds out whether model, frozen parts and losses go together, before anything is allocated.

    Raises:
        ConfigError: they do not; says which key and what is allowed.
        UserError: a folder that the recipe names holds no model.
    """
    spec = recipe.model
    if spec.init_from is not None:
        folder = resolve_folder(Path(spec.init_from))
        if read_quantization(folder) is not None:
            raise ConfigError(
                f"model.init_from: {folder} holds int8 weights, which cannot be trained: name a float model"
            )
        context = _config_of(spec).thinker.max_position_embeddings
        if recipe.data.train and recipe.data.seq_len > context:
            raise ConfigError(f"data.seq_len ({recipe.data.seq_len}) exceeds the context of {folder} ({context})")
    vision, audio = _encoders(spec)
    parts = ModelParts(
        vision=vision is not None,
        contrastive=vision is not None and vision.projection_dim is not None,
        audio=audio is not None,
        ctc=audio is not None and audio.ctc,
        talker=check_talker(spec),
    )
    for key, value, allowed in recipe.conflicts_with(parts):
        raise ConfigError(f"{key} = {value}: {allowed}")


def initial_config(recipe: Recipe, tokenizer: Tokenizer, voices: tuple[str, ...] = ()) -> OmniConfig:
    """The sizes of the model that a run begins with.

    Args:
        recipe: as `check_model` accepted it.
        tokenizer: of the model.
        voices: names of those who speak in the data.

    Raises:
        ConfigError: the tokenizer does not fit the vocabulary, or lacks the token that stands for a medium; or the
            Talker has no voice for one of those who speak.
    """
    spec = recipe.model
    if spec.init_from is not None:
        config = _config_of(spec)
        dropout = spec.thinker.changes.get("dropout")
        if dropout is not None:
            config = config.replace(thinker=config.thinker.model_dump() | {"dropout": dropout})
    else:
        asked = spec.thinker.changes.get("vocab_size")
        if asked is not None and asked < tokenizer.vocab_size:
            raise ConfigError(
                f"model.thinker.vocab_size ({asked}) is below the tokenizer's {tokenizer.vocab_size} entries"
            )
        # A multiple of 64 keeps the head's matrix product on its fast kernels.
        size = asked if asked is not None else math.ceil(tokenizer.vocab_size / 64) * 64
        config = spec.build(vocab_size=size).replace(eos_token_ids=tokenizer.end_ids)
    vision, audio = _encoders(spec)
    if vision is None and audio is None:
        return with_talker(recipe, config, voices)
    image, sound = config.image_token_id, config.audio_token_id
    if vision is not None and image is None:
        image = tokenizer.id_of(SPECIAL.image)
    if audio is not None and sound is None:
        sound = tokenizer.id_of(SPECIAL.audio)
    return with_talker(recipe, config.with_encoders(vision, audio, image, sound), voices)


def initial_model(recipe: Recipe, config: OmniConfig) -> OmniModel:
    """The model with its initial weights: those of the recipe's folders, the others drawn from its seed.

    Args:
        recipe: as `check_model` accepted it.
        config: `initial_config` of it.
    """
    spec = recipe.model
    generator = torch.Generator().manual_seed(recipe.seed)
    if spec.init_from is None:
        model = OmniModel(config, generator)
    else:
        model = load_model(resolve_folder(Path(spec.init_from)))
        if model.config != config:
            model = _refitted(model, config, generator)
    for encoder, encoder_spec in ((model.vision, spec.vision), (model.audio, spec.audio)):
        if encoder_spec is not None and encoder_spec.from_ is not None:
            from muomni.formats.hf_encoders import load_encoder

            load_encoder(encoder, Path(encoder_spec.from_).expanduser())  # type: ignore[arg-type]
    fill_talker(recipe, model)
    return model


def _refitted(model: OmniModel, config: OmniConfig, generator: torch.Generator) -> OmniModel:
    """The same weights in a model with other encoders, heads, Talker or dropout; what is new is drawn."""
    changed = OmniModel(config, generator)
    weights = model.state_dict()
    own = changed.state_dict()
    # A contrastive head of another width is a new one.
    kept = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
    changed.load_state_dict(kept, strict=False)
    changed.thinker.tie_weights()
    return changed


def _config_of(spec: ModelSpec) -> OmniConfig:
    assert spec.init_from is not None
    return read_config(resolve_folder(Path(spec.init_from)))[0]


def _encoders(spec: ModelSpec) -> tuple[VisionEncoderConfig | None, AudioEncoderConfig | None]:
    """The encoders' sizes: the folder's of `init_from` first, then those of `from`, then the preset's."""
    known = _config_of(spec) if spec.init_from is not None else None
    return (
        _vision(spec, None if known is None else known.vision),
        _audio(spec, None if known is None else known.audio),
    )


def _vision(spec: ModelSpec, known: VisionEncoderConfig | None) -> VisionEncoderConfig | None:
    wanted = spec.vision
    if known is not None:
        if wanted is None:
            return known
        return known.replace(**_changes("vision", wanted, known, _VISION_MAY_CHANGE))
    if wanted is None or wanted.from_ is None:
        return spec.new_vision()
    from muomni.formats.hf_encoders import read_siglip

    return read_siglip(Path(wanted.from_).expanduser(), **wanted.changes)


def _audio(spec: ModelSpec, known: AudioEncoderConfig | None) -> AudioEncoderConfig | None:
    wanted = spec.audio
    if known is not None:
        if wanted is None:
            return known
        return known.replace(**_changes("audio", wanted, known, _AUDIO_MAY_CHANGE))
    if wanted is None or wanted.from_ is None:
        return spec.new_audio()
    from muomni.formats.hf_encoders import read_whisper

    return read_whisper(Path(wanted.from_).expanduser(), **wanted.changes)


def _changes(
    name: str, wanted: VisionSpec | AudioSpec, known: VisionEncoderConfig | AudioEncoderConfig, allowed: set[str]
) -> dict[str, object]:
    """What the recipe says of an encoder that `init_from` has; sizes may be repeated, not changed."""
    if wanted.from_ is not None:
        raise ConfigError(f'model.{name}.from = {wanted.from_}: remove it: the model of "init_from" has one already')
    for key, value in wanted.changes.items():
        if key not in allowed and getattr(known, key, None) != value:
            raise ConfigError(
                f'model.{name}.{key} = {value}: remove it: "init_from" fixes it to {getattr(known, key, None)}; '
                f"what may differ is {', '.join(sorted(allowed))}"
            )
    return {key: value for key, value in wanted.changes.items() if key in allowed}
