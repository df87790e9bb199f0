"""What a Talker begins with: the codec of its speech, the pairs it learns from, and its first weights."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from muomni.config import OmniConfig, Recipe
from muomni.config.codec import CodecConfig
from muomni.config.recipe_model import ModelSpec
from muomni.config.talker import TalkerConfig
from muomni.config.validation_errors import in_words
from muomni.data import SpeechPairs
from muomni.data.speech.pairs import prepare_split
from muomni.errors import ConfigError, UserError
from muomni.formats.codec import load_codec, read_codec_config
from muomni.formats.pretrained import load_model, read_config
from muomni.formats.tensors import resolve_folder
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec

# What may be said anew of a Talker that comes with its weights.
_MAY_CHANGE = {"dropout", "code_corruption", "conditioning_dropout", "stop_weight"}


@dataclass(frozen=True)
class Speech:
    """The pairs of a run.

    Attributes:
        train: to learn from.
        val: to validate on.
    """

    train: SpeechPairs
    val: SpeechPairs

    @property
    def voices(self) -> tuple[str, ...]:
        """The speakers, sorted; both parts have the same list."""
        return self.train.speakers

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: how much there is, and what was left out and why."""
        train, val = self.train, self.val
        lines = [
            f"speech: {len(train):,} pairs, {train.seconds / 60:,.1f} min, in {_counted(len(self.voices), 'voice')}; "
            f"{len(val):,} pairs to validate on"
        ]
        if left_out := train.left_out:
            lines.append(f"speech: {_counted(len(left_out), 'pair')} left out, for example {'; '.join(left_out[:3])}")
        return tuple(lines)


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def check_talker(spec: ModelSpec) -> bool:
    """Whether the model of a recipe has a Talker.

    Raises:
        ConfigError: the recipe asks for one that cannot be made.
        UserError: `talker.codec` is no codec.
    """
    known, wanted = _known(spec), spec.talker
    talker = None if known is None else known.talker
    if wanted is None:
        return talker is not None
    if talker is not None:
        _check_changes(spec, talker)
        return True
    if wanted.codec is None:
        raise ConfigError("model.talker.codec is missing: name the run or folder of a trained codec")
    thinker = spec.build() if known is None else known
    _new(spec, thinker, _codec_config(wanted.codec), ("default",))
    return True


def _tell(text: str) -> None:
    """A line for the user before the run has a progress line."""
    print(text, file=sys.stderr, flush=True)


def _nothing(text: str) -> None:
    """Another process tells it."""


def prepare_speech(recipe: Recipe, device: torch.device, progress: bool) -> Speech:
    """The pairs of `data.speech` as codes, aligned with their texts; computed once and kept.

    Raises:
        DataError: see `prepare_split`.
    """
    data, spec = recipe.data.speech, recipe.model
    assert data is not None  # the recipe has a weight for speech
    known = _known(spec)
    talker = known.talker if known is not None else None
    wanted = spec.talker.changes.get("max_advance") if spec.talker is not None else None
    max_advance = (
        talker.max_advance if talker is not None else wanted or TalkerConfig.model_fields["max_advance"].default
    )
    train, val = prepare_split(
        data.train,
        data.val,
        data.val_fraction,
        _codec(spec).to(device),
        max_advance=max_advance,
        cache_dir=None if recipe.data.cache_dir is None else Path(recipe.data.cache_dir).expanduser(),
        max_unreadable_fraction=recipe.data.max_unreadable_fraction,
        progress=progress,
        say=_tell if progress else _nothing,
    )
    return Speech(train, val)


def with_talker(recipe: Recipe, config: OmniConfig, voices: tuple[str, ...]) -> OmniConfig:
    """The configuration with the Talker that the recipe asks for, if it does.

    Args:
        config: without one, or with that of `init_from`.
        voices: names of those who speak in the data.

    Raises:
        ConfigError: the model of `init_from` has a Talker without one of the voices, or sizes do not fit.
    """
    spec = recipe.model
    if config.talker is not None:
        unknown = [name for name in voices if name not in config.talker.voices]
        if unknown:
            raise ConfigError(
                f"data.speech: the Talker of {spec.init_from} has no voice for {', '.join(unknown[:5])}: it speaks as "
                f"{', '.join(config.talker.voices)}; leave those recordings out, or train a Talker anew"
            )
        changes = {} if spec.talker is None else spec.talker.changes
        return config.with_speech(config.talker.replace(**changes), config.codec)
    if spec.talker is None:
        return config
    assert spec.talker.codec is not None  # `check_talker` saw it
    return _new(spec, config, _codec_config(spec.talker.codec), voices or ("default",))


def fill_talker(recipe: Recipe, model: OmniModel) -> None:
    """Gives a new Talker its codec, and its blocks the weights of the Thinker's last ones where sizes agree."""
    spec, talker, codec = recipe.model.talker, model.talker, model.codec
    if spec is None or spec.codec is None or talker is None or codec is None:
        return
    codec.load_state_dict(_codec(recipe.model).state_dict())
    if not spec.from_thinker:
        return
    count = min(len(talker.layers), len(model.thinker.layers))
    for own, thinkers in zip(talker.layers[-count:], model.thinker.layers[-count:], strict=True):
        weights, shapes = thinkers.state_dict(), own.state_dict()
        own.load_state_dict({n: w for n, w in weights.items() if w.shape == shapes[n].shape}, strict=False)


def _new(spec: ModelSpec, config: OmniConfig, codec: CodecConfig, voices: tuple[str, ...]) -> OmniConfig:
    assert spec.talker is not None
    try:
        return config.with_speech(spec.talker.build(config.thinker, codec, voices), codec)
    except ValidationError as error:
        raise ConfigError(in_words(error, TalkerConfig, "model.talker", ())) from None


def _check_changes(spec: ModelSpec, known: TalkerConfig) -> None:
    wanted = spec.talker
    assert wanted is not None
    if wanted.codec is not None:
        raise ConfigError(
            f'model.talker.codec = {wanted.codec}: remove it: the model of "init_from" has a Talker with its codec'
        )
    for key, value in wanted.changes.items():
        if key not in _MAY_CHANGE and getattr(known, key) != value:
            raise ConfigError(
                f'model.talker.{key} = {value}: remove it: "init_from" fixes it to {getattr(known, key)}; '
                f"what may differ is {', '.join(sorted(_MAY_CHANGE))}"
            )


def _known(spec: ModelSpec) -> OmniConfig | None:
    return None if spec.init_from is None else read_config(resolve_folder(Path(spec.init_from)))[0]


def _codec_config(path: str) -> CodecConfig:
    try:
        return read_codec_config(Path(path).expanduser())
    except UserError as error:
        raise UserError(f"model.talker.codec: {error}") from None


def _codec(spec: ModelSpec) -> SpeechCodec:
    """The codec that the pairs are encoded with."""
    if spec.talker is not None and spec.talker.codec is not None:
        return load_codec(Path(spec.talker.codec).expanduser())
    assert spec.init_from is not None
    codec = load_model(resolve_folder(Path(spec.init_from))).codec
    assert codec is not None
    return codec
