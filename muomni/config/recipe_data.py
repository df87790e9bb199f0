"""Data of a recipe: tokenizer, sources of documents, pairs of text and speech, augmentation."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from muomni.config.base import Fraction, Frozen, Language, PositiveInt, conflict, parse
from muomni.config.validation_errors import Hint


class TokenizerSpec(Frozen):
    """A byte-level BPE: trained on the training data, or taken from `path`."""

    vocab_size: int = Field(default=8192, ge=320, le=1_000_000)
    """Size of the vocabulary, special tokens included."""
    path: str | None = None
    """A folder with a `tokenizer.json`; then nothing is trained and `vocab_size` is not used."""
    max_bytes: int = Field(default=100_000_000, ge=1000)
    """How much of the training text the BPE trainer reads."""


def _as_texts(value: object) -> object:
    return [value] if isinstance(value, str) else value


Skill = Literal["scene", "reading", "facts", "persona", "spoken"]


class SourceSpec(Frozen):
    """One source of documents."""

    path: str = Field(min_length=1)
    """A file, a folder (every file of a known format below it), or a `datasets` name."""
    format: Literal["auto", "text", "jsonl", "parquet", "datasets"] = "auto"
    """`auto` goes by the file name, also before `.gz`: `.txt`/`.md` text, `.jsonl`/`.json` JSON lines, `.parquet`.
    `datasets` is the Hugging Face library: a name or a saved folder.
    """
    text_column: str = "text"
    """The column that holds a document."""
    messages_field: str = "messages"
    """The column that holds a conversation; it is used where a row has both."""
    question: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_texts)] = ()
    """For data sets without conversations: what is asked, with columns in braces, as `"{image} Which digit is this?"`;
    several wordings take turns.
    """
    answer: str | None = Field(default=None, min_length=1)
    """What is answered, as `"{label}"`; goes with `question`."""
    separator: str | None = Field(default=None, min_length=1)
    """Separator between documents in plain text; without it a file is one document."""
    split: str = "train"
    """Split of a `datasets` data set."""
    subset: str | None = None
    """Configuration of a `datasets` data set that has several."""
    weight: float = Field(default=1.0, ge=0.05, le=1000)
    """How many times an epoch reads it, in steps of 0.05; below 1 an epoch reads another part of it each time. For
    training only.
    """

    @model_validator(mode="after")
    def _options_apply(self) -> "SourceSpec":
        if abs(self.weight * 20 - round(self.weight * 20)) > 1e-6:
            raise conflict("weight", self.weight, "must be a multiple of 0.05")
        if self.separator is not None and self.format not in ("auto", "text"):
            raise conflict("separator", self.separator, f'is for plain text, but format is "{self.format}"')
        if bool(self.question) != (self.answer is not None):
            raise conflict("answer", self.answer, "question and answer must be given together")
        if self.subset is not None and self.format != "datasets":
            raise conflict("subset", self.subset, f'needs "format": "datasets", not "{self.format}"')
        if "split" in self.model_fields_set and self.format not in ("auto", "datasets"):
            raise conflict("split", self.split, f'needs "format": "datasets", not "{self.format}"')
        return self


class SyntheticSpec(Frozen):
    """A source that is made, not read: item n is a function of n, the seed and the part alone."""

    synthetic: Literal["world"]
    """The small world: coloured shapes, things to read, facts, small talk, and questions that are spoken."""
    count: int = Field(default=20_000, ge=1, le=100_000_000)
    """How many items."""
    skills: Annotated[tuple[Skill, ...], Field(strict=False, min_length=1)] = ("scene", "reading", "facts", "persona")
    """What they are about, each as often. `spoken` needs the extra "speech"."""
    seed: int = 0
    """Another seed gives other items."""
    part: Literal["train", "held_out"] = "train"
    """`held_out` asks for nothing but what never occurs in `train`: combinations, words and voices."""
    weight: float = Field(default=1.0, ge=0.05, le=1000)
    """As of other sources."""

    @property
    def path(self) -> str:
        """Its name in messages."""
        return f"synthetic {self.synthetic} ({self.part}, seed {self.seed})"


def source_of(path: Path | str) -> SourceSpec:
    """The source at a path, as the defaults read it.

    Raises:
        ConfigError: its name is not UTF-8.
    """
    return parse(SourceSpec, {"path": str(path)}, "data")


def _as_source(value: object) -> object:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, (dict, SourceSpec)):
        return value
    raise PydanticCustomError("source", 'must be a path in quotes, or an object {"path": ...}')


def _as_list(value: object) -> object:
    return [value] if isinstance(value, (str, dict)) else value


Source = Annotated[SourceSpec, BeforeValidator(_as_source, json_schema_input_type=str | SourceSpec)]
Sources = Annotated[
    tuple[Source, ...],
    Field(strict=False),
    BeforeValidator(_as_list, json_schema_input_type=str | SourceSpec | list[str | SourceSpec]),
]


AnySource = SourceSpec | SyntheticSpec


def _kind_of_source(value: object) -> str:
    made = isinstance(value, SyntheticSpec) or (isinstance(value, dict) and "synthetic" in value)
    return "made" if made else "read"


_ReadSource = Annotated[Source, Tag("read")]
_MadeSource = Annotated[SyntheticSpec, Tag("made")]
# Documents can be made as well as read.
DocumentSources = Annotated[
    tuple[Annotated[_ReadSource | _MadeSource, Discriminator(_kind_of_source)], ...],
    Field(strict=False),
    BeforeValidator(
        _as_list, json_schema_input_type=str | SourceSpec | SyntheticSpec | list[str | SourceSpec | SyntheticSpec]
    ),
]


class ImageAugmentSpec(Frozen):
    """Random changes of the training pictures; 0 turns one off."""

    shift: float = Field(default=0.0, ge=0, le=0.5)
    """Up to this share of width and height, each way."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Larger or smaller by up to this share."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Degrees, each way."""
    color_jitter: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation each by up to this share."""
    grayscale: Fraction = 0.0
    """Probability that a picture loses its colours."""
    blur: Fraction = 0.0
    """Probability of a slight blur."""


class AudioAugmentSpec(Frozen):
    """Random changes of the training sounds; 0 turns one off.

    The features do not depend on loudness, so it is not changed.
    """

    speed: float = Field(default=0.0, ge=0, le=0.5)
    """Faster or slower by up to this share, the pitch with it."""
    shift: float = Field(default=0.0, ge=0, le=5)
    """Up to this many seconds of silence before the sound."""
    noise: Fraction = 0.0
    """Probability of white noise, 10 to 40 dB below the sound."""
    time_masks: int = Field(default=0, ge=0, le=10)
    """Time spans of the spectrogram that are blanked, each up to a tenth of its length (SpecAugment,
    arXiv:1904.08779).
    """
    frequency_masks: int = Field(default=0, ge=0, le=10)
    """Number of frequency bands that are blanked, each up to an eighth of the bins."""


class AugmentSpec(Frozen):
    """Random changes of the training media; they depend on seed, epoch and document alone."""

    image: ImageAugmentSpec = ImageAugmentSpec()
    """Changes of pictures."""
    audio: AudioAugmentSpec = AudioAugmentSpec()
    """Changes of sounds."""


class SpeechDataSpec(Frozen):
    """Pairs of a text and its recording, for the Talker.

    Codes and the alignment of a text with its recording are computed once and kept below `cache_dir`.
    """

    train: Annotated[Sources, Hint("say `--set data.speech.train=FILE`, or write it into the recipe")] = Field(
        min_length=1
    )
    """Manifests (`muomni data speech` and `muomni data recordings` write them) whose lines hold `audio`, `text` and,
    where there are several voices, `speaker` and `language`; or folders with such manifests.
    """
    val: Sources = ()
    """Pairs for validation; when empty, `val_fraction` of them is held out."""
    val_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of pairs held out, chosen by a hash of their text."""
    language: Language = "en"
    """Language of the pairs whose manifest names none, for example `de`."""
    pairs_per_sequence: PositiveInt = 2
    """Pairs that go with each row of `data.train`; not used without `data.train`."""

    @model_validator(mode="after")
    def _read_once(self) -> "SpeechDataSpec":
        for name in ("train", "val"):
            for number, source in enumerate(getattr(self, name)):
                if source.weight != 1:
                    raise conflict(f"{name}.{number}.weight", source.weight, "remove it: an epoch reads a pair once")
        return self


class DataSpec(Frozen):
    """Training and validation data."""

    train: Annotated[DocumentSources, Hint("say `--set data.train=FILE`, or write it into the recipe")] = ()
    """Sources; a plain string is a path. May be left out where only a Talker is trained, from `speech`."""
    val: DocumentSources = ()
    """Sources for validation; when empty, `val_fraction` of the documents is held out."""
    val_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of documents held out, chosen by a hash of their text."""
    speech: SpeechDataSpec | None = None
    """Pairs of text and speech, for a Talker."""
    seq_len: int = Field(default=512, ge=8)
    """Tokens in a row; rows are packed from whole documents and pieces of long ones."""
    shuffle: bool = True
    """Puts documents into a new seeded order each epoch."""
    cache_dir: str | None = None
    """Folder of the token caches; default `~/.cache/muomni/tokens`, or `$MUOMNI_CACHE/tokens`."""
    num_workers: int = Field(default=2, ge=0, le=256)
    """Threads that read and decode pictures and sounds ahead; 0 reads them between the steps."""
    max_unreadable_fraction: Fraction = 0.01
    """The run stops when more than this share of the documents has media that cannot be read."""
    augment: AugmentSpec = AugmentSpec()
    """Random changes of the training pictures and sounds."""

    @model_validator(mode="after")
    def _val_once(self) -> "DataSpec":
        for number, source in enumerate(self.val):
            if source.weight != 1:
                raise conflict(f"val.{number}.weight", source.weight, "remove it: validation reads a source once")
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "DataSpec":
        if self.train:
            return self
        if self.speech is None:
            if "train" in self.model_fields_set:
                raise conflict("train", [], "must hold at least 1")
            raise PydanticKnownError("missing")
        # What says how documents are read has no meaning without them.
        for name in ("val", "val_fraction", "seq_len", "augment"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise conflict(
                    name,
                    value,
                    "remove it: data.train is empty, and pairs of speech have their own keys in data.speech",
                )
        return self
