"""The pairs of text and speech that a run learns from."""

import sys
from dataclasses import dataclass
from functools import partial

import torch

from muomni.config.recipe_data import DataSpec
from muomni.config.talker import TalkerConfig
from muomni.data import SpeechPairs
from muomni.data.speech.pairs import prepare_split
from muomni.files import user_path
from muomni.formats.codec import load_codec
from muomni.formats.pretrained import load_model
from muomni.model.codec import SpeechCodec
from muomni.training.resolve_model import ResolvedModel


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
    def voices(self) -> dict[str, str]:
        """The speakers, sorted, with their languages; both parts have the same."""
        return dict(zip(self.train.speakers, self.train.languages, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: how much there is, and what was left out and why."""
        train, val = self.train, self.val
        lines = [
            (
                f"speech: {len(train):,} pairs, {train.seconds / 60:,.1f} min, "
                f"in {_counted(len(self.voices), 'voice')}; {len(val):,} pairs to validate on"
            )
        ]
        if left_out := train.left_out:
            lines.append(f"speech: {_counted(len(left_out), 'pair')} left out, for example {'; '.join(left_out[:3])}")
        return tuple(lines)


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def prepare_speech(data: DataSpec, model: ResolvedModel, device: torch.device, progress: bool) -> Speech:
    """The pairs of `data.speech` as codes, aligned with their texts; computed once and cached.

    Args:
        data: with `speech`.
        model: whose codec encodes the speech.
        device: of the codec.
        progress: show how far it is.

    Raises:
        DataError: see `prepare_split`.
    """
    speech = data.speech
    assert speech is not None  # the recipe has a weight for speech
    talker = model.config.talker
    train, val = prepare_split(
        speech.train,
        speech.val,
        speech.val_fraction,
        _codec(model).to(device),
        max_advance=TalkerConfig.model_fields["max_advance"].default if talker is None else talker.max_advance,
        cache_dir=None if data.cache_dir is None else user_path(data.cache_dir),
        max_unreadable_fraction=data.max_unreadable_fraction,
        language=speech.language,
        # The run has no progress line yet.
        report=partial(print, file=sys.stderr, flush=True) if progress else None,
    )
    return Speech(train, val)


def _codec(model: ResolvedModel) -> SpeechCodec:
    """The codec that the pairs are encoded with."""
    wanted = model.spec.talker
    if wanted is not None and wanted.codec is not None:
        return load_codec(user_path(wanted.codec))
    assert model.folder is not None
    codec = load_model(model.folder).codec
    assert codec is not None
    return codec
