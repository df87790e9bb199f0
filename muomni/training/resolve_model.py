"""The sizes of the model that a recipe trains: from a preset or an earlier run; encoders and Talker may be new."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from muomni.config import OmniConfig, Recipe
from muomni.config.codec import CodecConfig
from muomni.config.encoders import AudioEncoderConfig, VisionEncoderConfig
from muomni.config.recipe import ModelParts
from muomni.config.recipe_model import AudioSpec, ModelSpec, VisionSpec
from muomni.config.talker import TalkerConfig, TalkerSpec
from muomni.config.validation_errors import in_words
from muomni.data import SPECIAL, Tokenizer
from muomni.errors import ConfigError, UserError
from muomni.files import user_path
from muomni.formats.codec import read_codec_config
from muomni.formats.pretrained import read_config, read_quantization
from muomni.formats.tensors import resolve_folder

# What a recipe may change in a part that comes with its weights.
_VISION_MAY_CHANGE = {"dropout", "min_tokens", "max_tokens", "projection_dim"}
_AUDIO_MAY_CHANGE = {"dropout", "max_seconds", "ctc"}
_TALKER_MAY_CHANGE = {"dropout", "code_corruption", "conditioning_dropout", "stop_weight"}


@dataclass(frozen=True)
class ResolvedModel:
    """A recipe's model before its data are read.

    Attributes:
        spec: of the recipe.
        folder: whose weights are taken, and `base` their configuration; None where all are new.
        config: all sizes. The vocabulary is as large as the recipe's tokenizer is asked to be, its special tokens have
            placeholder ids and a new Talker has one voice: `fit` gives what the data decide.
    """

    spec: ModelSpec
    folder: Path | None
    base: OmniConfig | None
    config: OmniConfig

    def fit(self, tokenizer: Tokenizer, voices: Mapping[str, str] | None = None) -> OmniConfig:
        """The final configuration.

        Args:
            tokenizer: of the model.
            voices: names of those who speak in the data, with their languages.

        Raises:
            ConfigError: the tokenizer is larger than the vocabulary, or lacks the token that stands for a medium; or
                the Talker of `folder` has no voice for one of those who speak, or in another language.
        """
        config, base = self.config, self.base
        changes: dict[str, Any] = {}
        if base is None:
            size = _vocabulary(self.spec, tokenizer.vocab_size)
            changes["thinker"] = config.thinker.model_dump() | {"vocab_size": size}
            changes["eos_token_ids"] = tokenizer.end_ids
        if config.vision is not None and (base is None or base.image_token_id is None):
            changes["image_token_id"] = tokenizer.id_of(SPECIAL.image)
        if config.audio is not None and (base is None or base.audio_token_id is None):
            changes["audio_token_id"] = tokenizer.id_of(SPECIAL.audio)
        if config.talker is not None and voices:
            if base is not None and base.talker is not None:
                _check_voices(self.spec, base.talker, voices)
            else:
                config = _new_talker(self.spec, config, config.codec, voices)
        return config.replace(**changes)


def resolve_model(recipe: Recipe) -> ResolvedModel:
    """Reads the folders that a recipe names, and checks that model, frozen parts, losses and data go together.

    Raises:
        ConfigError: they do not; says which key and what is allowed.
        UserError: a folder that the recipe names holds no model or codec.
    """
    spec = recipe.model
    folder, base = _base(spec)
    if base is not None:
        context = base.thinker.max_position_embeddings
        if recipe.data.train and recipe.data.seq_len > context:
            raise ConfigError(f"data.seq_len ({recipe.data.seq_len}) exceeds the context of {folder} ({context})")
    vision = _vision(spec, None if base is None else base.vision)
    audio = _audio(spec, None if base is None else base.audio)
    config = _with_talker(spec, spec.build() if base is None else base)
    parts = ModelParts(
        vision=vision is not None,
        contrastive=vision is not None and vision.projection_dim is not None,
        audio=audio is not None,
        ctc=audio is not None and audio.ctc,
        talker=config.talker is not None,
    )
    for key, value, allowed in recipe.conflicts_with(parts):
        raise ConfigError(f"{key} = {value}: {allowed}")
    # With a base the recipe may change dropout alone.
    changes = (
        spec.thinker.changes if base is not None else {"vocab_size": _vocabulary(spec, recipe.tokenizer.vocab_size)}
    )
    config = config.replace(thinker=config.thinker.model_dump() | changes)
    if vision is not None or audio is not None:
        image, sound = config.image_token_id, config.audio_token_id
        image = int(sound == 0) if image is None else image
        sound = int(image == 0) if sound is None else sound
        config = config.with_encoders(vision, audio, image, sound)
    return ResolvedModel(spec, folder, base, config)


def _base(spec: ModelSpec) -> tuple[Path | None, OmniConfig | None]:
    if spec.init_from is None:
        return None, None
    folder = resolve_folder(Path(spec.init_from))
    if read_quantization(folder) is not None:
        raise ConfigError(f"model.init_from: {folder} holds int8 weights, which cannot be trained: name a float model")
    return folder, read_config(folder)[0]


def _vocabulary(spec: ModelSpec, entries: int) -> int:
    """The size of a new model's vocabulary, for a tokenizer with so many entries."""
    size: int | None = spec.thinker.changes.get("vocab_size")
    if size is None:
        # A multiple of 64 keeps the head's matrix product on its fast kernels.
        return math.ceil(entries / 64) * 64
    if size < entries:
        raise ConfigError(f"model.thinker.vocab_size ({size}) is below the tokenizer's {entries} entries")
    return size


def _vision(spec: ModelSpec, base: VisionEncoderConfig | None) -> VisionEncoderConfig | None:
    wanted = spec.vision
    if base is not None:
        return base if wanted is None else base.replace(**_changes("vision", wanted, base, _VISION_MAY_CHANGE))
    if wanted is None or wanted.from_ is None:
        return spec.new_vision()
    from muomni.formats.hf_encoders import read_siglip

    return read_siglip(user_path(wanted.from_), **wanted.changes)


def _audio(spec: ModelSpec, base: AudioEncoderConfig | None) -> AudioEncoderConfig | None:
    wanted = spec.audio
    if base is not None:
        return base if wanted is None else base.replace(**_changes("audio", wanted, base, _AUDIO_MAY_CHANGE))
    if wanted is None or wanted.from_ is None:
        return spec.new_audio()
    from muomni.formats.hf_encoders import read_whisper

    return read_whisper(user_path(wanted.from_), **wanted.changes)


def _with_talker(spec: ModelSpec, config: OmniConfig) -> OmniConfig:
    """The configuration with the Talker that the recipe asks for; a new one has one voice."""
    wanted = spec.talker
    if wanted is None:
        return config
    if config.talker is not None:
        talker = config.talker.replace(**_changes("talker", wanted, config.talker, _TALKER_MAY_CHANGE))
        return config.with_speech(talker, config.codec)
    if wanted.codec is None:
        raise ConfigError("model.talker.codec is missing: name the run or folder of a trained codec")
    return _new_talker(spec, config, _codec_config(wanted.codec), {"default": "en"})


def _new_talker(
    spec: ModelSpec, config: OmniConfig, codec: CodecConfig | None, voices: Mapping[str, str]
) -> OmniConfig:
    assert spec.talker is not None and codec is not None
    try:
        return config.with_speech(spec.talker.build(config.thinker, codec, voices), codec)
    except ValidationError as error:
        raise ConfigError(in_words(error, TalkerConfig, "model.talker", ())) from None


def _codec_config(path: str) -> CodecConfig:
    try:
        return read_codec_config(user_path(path))
    except UserError as error:
        raise UserError(f"model.talker.codec: {error}") from None


def _check_voices(spec: ModelSpec, talker: TalkerConfig, voices: Mapping[str, str]) -> None:
    unknown = [name for name in voices if name not in talker.voices]
    if unknown:
        raise ConfigError(
            f"data.speech: the Talker of {spec.init_from} has no voice for {', '.join(unknown[:5])}: it speaks as "
            f"{', '.join(talker.voices)}; leave those recordings out, or train a Talker anew"
        )
    for name, language in voices.items():
        known = talker.language(talker.voices.index(name))
        if language != known:
            raise ConfigError(
                f'data.speech: the recordings of {name} are in "{language}", and its voice in {spec.init_from} speaks '
                f'"{known}": give the language of the recordings ("language" in the manifest, or data.speech.language) '
                "or another speaker"
            )


def _changes(
    name: str,
    wanted: VisionSpec | AudioSpec | TalkerSpec,
    base: VisionEncoderConfig | AudioEncoderConfig | TalkerConfig,
    allowed: Set[str],
) -> dict[str, Any]:
    """What the recipe says of a part that `init_from` has; sizes may be repeated, not changed."""
    origin, path = ("codec", wanted.codec) if isinstance(wanted, TalkerSpec) else ("from", wanted.from_)
    if path is not None:
        has = "a Talker with its codec" if origin == "codec" else "one already"
        raise ConfigError(f'model.{name}.{origin} = {path}: remove it: the model of "init_from" has {has}')
    for key, value in wanted.changes.items():
        if key not in allowed and getattr(base, key, None) != value:
            raise ConfigError(
                f'model.{name}.{key} = {value}: remove it: "init_from" fixes it to {getattr(base, key, None)}; '
                f"what may differ is {', '.join(sorted(allowed))}"
            )
    return {key: value for key, value in wanted.changes.items() if key in allowed}
