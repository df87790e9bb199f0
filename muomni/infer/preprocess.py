"""From a user's prompt to the engine's input: messages as token ids, media as embeddings, and the token budget."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from muomni.data.media.media_ref import MAX_HELD_BYTES, MediaContent, read_media
from muomni.data.text.chat import EncodedChat, as_messages, check_messages, encode_chat
from muomni.data.text.special_tokens import SPECIAL
from muomni.errors import MediaError, PromptError, SettingError, UserError
from muomni.infer.encoder_cache import Encoded, EncoderCache, processor_of, prompt_media, takes
from muomni.infer.prompt_media import PromptMedia
from muomni.infer.sampling import SamplingParams
from muomni.infer.speculative.drafts import check_guessable
from muomni.infer.structured import Grammar, Grammars
from muomni.model import OmniModel

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Bytes of files that are read once and kept until they are encoded; what is beyond is opened again for each use.
_HELD_BYTES = 256 << 20


def check_ids_alone(params: SamplingParams) -> None:
    """Refuses settings that need more than token ids, where these are all that is returned.

    Raises:
        SettingError: naming the setting.
    """
    use = "use chat, complete or stream"
    if params.stops:
        raise SettingError(f"stop: token ids hold no text to stop at; {use}", "stop")
    if params.logprobs is not None:
        raise SettingError(f"logprobs: token ids are returned alone; {use}", "logprobs")


def token_budget(model: OmniModel, shape: Sequence[int], params: SamplingParams, of_which: str = "") -> int:
    """How many tokens may follow prompts of `shape` (B, T): `max_new_tokens`, less where the context ends.

    Args:
        model: has the context.
        shape: of the token ids.
        params: have `max_new_tokens`.
        of_which: what in the prompt takes how many tokens, for the error.

    Raises:
        PromptError: the prompt is empty or fills the context.
    """
    if len(shape) != 2:
        raise PromptError(f"token ids must be (rows, tokens), not of shape {tuple(shape)}")
    if 0 in shape:
        raise PromptError("the prompt is empty: there is nothing to continue")
    context = model.config.thinker.max_position_embeddings
    if shape[1] >= context:
        raise PromptError(
            f"the prompt has {shape[1]} tokens{f' ({of_which})' if of_which else ''} and the model's context is "
            f"{context}: no room is left for a reply; shorten the prompt"
        )
    return min(params.max_new_tokens, context - shape[1])


class EngineInput(NamedTuple):
    """A prompt as the engine takes it.

    Attributes:
        ids: of its tokens.
        params: the settings.
        limit: its token budget, new tokens at most.
        media: its pictures and sounds, or None.
        grammar: that its reply follows, or None.
        error: what is wrong with it; then nothing is computed for it.
    """

    ids: Sequence[int]
    params: SamplingParams
    limit: int = 0
    media: PromptMedia | None = None
    grammar: Grammar | None = None
    error: UserError | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest reply."""
        return len(self.ids) + self.limit


def checked_tokenizer(model: OmniModel, tokenizer: "Tokenizer | None") -> "Tokenizer":
    """The tokenizer of a model.

    Raises:
        UserError: there is none, or it is another model's.
    """
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer, so it neither reads nor writes text: use generate with token ids, "
            "or set model.tokenizer (a folder has one when it holds tokenizer.json)"
        )
    if tokenizer.vocab_size > model.config.thinker.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's vocabulary is "
            f"{model.config.thinker.vocab_size}: it belongs to another model"
        )
    return tokenizer


def end_ids(model: OmniModel, tokenizer: "Tokenizer | None") -> tuple[int, ...]:
    """Tokens that end a reply: the configuration's, else the tokenizer's ends of a turn and of a document.

    The end of a turn always does: the configuration of a base model does not name it, also after it learnt to chat.
    """
    ends = model.config.eos_token_ids
    if tokenizer is None or not ends:
        return ends if tokenizer is None else tokenizer.end_ids
    turn = tokenizer.backend.token_to_id(SPECIAL.im_end)
    return ends if turn is None or turn in ends else (turn, *ends)


def settings_of(
    prompts: Sequence[Any],
    sampling: Sequence[Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
    *,
    guessed: bool = False,
) -> list[SamplingParams]:
    """The settings of every prompt: its own before those for all.

    Raises:
        PromptError: `prompts` is no list or an empty one, or a setting is not allowed, or with `guessed` leaves
            nothing to guess.
    """
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Sequence):
        raise PromptError(f"prompts must be a list, not {type(prompts).__name__}; chat answers a single one")
    if not prompts:
        raise PromptError("the list of prompts is empty: there is nothing to answer")
    if sampling is not None and len(sampling) != len(prompts):
        raise PromptError(f"sampling has {len(sampling)} entries for {len(prompts)} prompts: give one for each")
    params = []
    for number in range(len(prompts)):
        try:
            params.append(SamplingParams.of(**{**settings, **(sampling[number] if sampling is not None else {})}))
            if guessed:
                check_guessable(params[-1])
        except PromptError as error:
            raise PromptError(f"prompt {number + 1} of {len(prompts)}: {error}") from None
    return params


def check_batch(on_error: str, batch_size: int) -> None:
    """Checks arguments of `chat_batch` and `say_batch`.

    Raises:
        PromptError: naming the argument.
    """
    if batch_size < 1:
        raise PromptError(f"batch_size = {batch_size}: must be at least 1")
    if on_error not in ("raise", "reply"):
        raise PromptError(f"on_error = {on_error!r}: must be 'raise' or 'reply'")


def read_prompt(
    model: OmniModel,
    tokenizer: "Tokenizer",
    prompt: Any,
    *,
    raw: bool = False,
    root: Path | None = None,
    files: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EncodedChat:
    """The ids of a prompt, with one placeholder for each picture and sound; of all media only video files are opened.

    Args:
        model: says what is understood besides text.
        tokenizer: of the model.
        prompt: as `MuOmni.chat` takes it, or a text with `raw`.
        raw: the text itself, without the turns of a chat, after what the tokenizer puts before a text.
        root: what relative paths are relative to; None for the working directory.
        files: False refuses paths, for prompts of people who must not read this machine's files.
        tools: see `encode_chat`.

    Raises:
        PromptError: the prompt is empty, not in the form of messages, or holds what the model does not take.
        MediaError: a video that cannot be read.
    """
    if raw:
        if not isinstance(prompt, str):
            raise PromptError("a plain continuation needs a text, not messages")
        if not prompt:
            raise PromptError("the prompt is empty: there is nothing to continue")
        ids = [*tokenizer.begin_ids, *tokenizer.encode(prompt)]
        return EncodedChat(ids, [False] * len(ids))
    encoders = {"image": model.config.vision, "audio": model.config.audio}
    inputs = [kind for kind, encoder in encoders.items() if encoder is not None]
    messages = as_messages(prompt)
    if root is not None:
        messages = check_messages(messages, inputs=inputs, root=root, files=files, videos=True)
    return encode_chat(tokenizer, messages, add_generation_prompt=True, inputs=inputs, files=files, tools=tools)


@dataclass(frozen=True)
class Reading:
    """How prompts are read.

    Attributes:
        raw: see `read_prompt`.
        root: see `read_prompt`.
        files: see `read_prompt`.
        tools: see `read_prompt`.
        alone: encode each medium by itself.
        grammars: compile what replies have to follow.
        max_pixels: of all pictures of a prompt together, for prompts of people who might want to fill the memory.
        keep_going: put an error into the input of its prompt instead of raising it.
    """

    raw: bool = False
    root: Path | None = None
    files: bool = True
    tools: Sequence[Mapping[str, Any]] | None = None
    alone: bool = False
    max_pixels: int | None = None
    keep_going: bool = False
    grammars: Grammars = field(default_factory=Grammars)


def prepare(
    model: OmniModel,
    tokenizer: "Tokenizer",
    encoders: EncoderCache,
    prompts: Iterable[tuple[Any, SamplingParams]],
    names: Sequence[str],
    reading: Reading,
    run: Callable[[Callable[[], Any]], Any] = operator.call,
) -> list[EngineInput]:
    """Makes the engine's inputs; new media of all prompts are encoded together.

    Args:
        model: answers.
        tokenizer: of the model.
        encoders: encode media, and keep the embeddings of earlier ones.
        prompts: with their settings.
        names: of the prompts, for errors; empty for a single one.
        reading: see `Reading`.
        run: see `EncoderCache.encode`.

    Raises:
        PromptError: a prompt that is wrong, or too long, or a grammar that cannot be followed.
        MediaError: a picture or sound that cannot be read.
    """
    held = 0
    V = model.config.thinker.vocab_size
    ends = end_ids(model, tokenizer)
    inputs: list[EngineInput | tuple[EncodedChat, EngineInput, str]] = []
    for (prompt, params), name in zip(prompts, names, strict=True):
        try:
            grammar = reading.grammars.compile(params.grammar, tokenizer, V, ends)
            options: dict[str, Any] = {"root": reading.root, "files": reading.files, "tools": reading.tools}
            chat = read_prompt(model, tokenizer, prompt, raw=reading.raw, **options)
            text = EngineInput(chat.ids, params, grammar=grammar)
            if chat.media:
                chat, held = _read_media(chat, held)
                _check_size(model, chat, params, reading.max_pixels)
                inputs.append((chat, text, name))
            else:
                inputs.append(text._replace(limit=token_budget(model, (1, len(chat.ids)), params)))
        except (PromptError, MediaError) as error:
            inputs.append(EngineInput([], params, error=_named(error, name, reading.keep_going)))
    parts = [part for each in inputs if not isinstance(each, EngineInput) for part in each[0].media]
    encoded = iter(encoders.encode(model, parts, alone=reading.alone, run=run) if parts else [])
    prepared = []
    for each in inputs:
        if isinstance(each, EngineInput):
            prepared.append(each)
            continue
        chat, text, name = each
        media = [next(encoded) for _ in chat.media]
        try:
            prepared.append(_with_media(model, chat, media, text))
        except (PromptError, MediaError) as error:
            prepared.append(EngineInput([], text.params, error=_named(error, name, reading.keep_going)))
    return prepared


def _read_media(chat: EncodedChat, held: int) -> tuple[EncodedChat, int]:
    """The conversation with its files in memory, as long as those of all prompts are not too large together.

    Args:
        chat: names the files.
        held: bytes in memory so far.

    Raises:
        MediaError: a file cannot be read.
    """
    media = []
    for part in chat.media:
        source = read_media(part.source, min(MAX_HELD_BYTES, _HELD_BYTES - held))
        held += len(source.data) if isinstance(source, MediaContent) else 0
        media.append(replace(part, source=source))
    return replace(chat, media=tuple(media)), held


def _named(error: UserError, name: str, keep_going: bool) -> UserError:
    """The error to keep; without `keep_going` it is raised, with the prompt's name."""
    if keep_going:
        return error
    raise type(error)(f"{name}: {error}" if name else str(error)) from None


def _check_size(model: OmniModel, chat: EncodedChat, params: SamplingParams, max_pixels: int | None) -> None:
    """Refuses a prompt that is too long, or whose pictures are too large, before its media are decoded."""
    processor = processor_of(model.config)
    sizes = [processor.size(part.kind, part.source) for part in chat.media]
    pixels, counts = sum(size.pixels for size in sizes), [size.tokens for size in sizes]
    if max_pixels is not None and pixels > max_pixels:
        raise PromptError(
            f"the pictures have {pixels:,} pixels together, more than the {max_pixels:,} that a prompt may have: "
            "make them smaller first"
        )
    text = len(chat.ids) - len(counts)
    least = text + sum(max(count - 1, 1) for count in counts)
    if least >= model.config.thinker.max_position_embeddings:
        token_budget(model, (1, text + sum(counts)), params, takes(chat.media, counts))


def _with_media(
    model: OmniModel, chat: EncodedChat, media: Sequence[Encoded | MediaError], text: EngineInput
) -> EngineInput:
    encoded = []
    for each in media:
        if isinstance(each, MediaError):
            raise each
        encoded.append(each)
    ids, placed = prompt_media(chat, encoded)
    counts = [len(each.features) for each in encoded]
    limit = token_budget(model, (1, len(ids)), text.params, takes(chat.media, counts))
    return text._replace(ids=ids, limit=limit, media=placed)
