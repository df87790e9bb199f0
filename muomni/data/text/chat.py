"""Conversations: checking messages, the chat template, and ids with the mask of what is learnt.

A conversation is ChatML: each turn is `<|im_start|>`, the role, a newline, the content, `<|im_end|>`, a newline. The
template is Jinja and is saved with the tokenizer, so Hugging Face's `apply_chat_template` writes the same.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, cast

from muomni.data.text.content_parts import MediaPart, PartRules, kind_of_value, name_of_type
from muomni.data.text.special_tokens import MEDIA_MARKS, PLACEHOLDERS, SPECIAL
from muomni.errors import PromptError, UserError

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
T = TypeVar("T")


class Message(TypedDict):
    """One turn.

    `role` is system, user, assistant, or tool for what a call gave. `content` is a text, or a list of parts where it
    holds a picture, sound or video; see `PartRules.part` for their form. `weight` is 0 in an answer that is not learnt.
    `tool_calls` are the assistant's, in OpenAI's form.
    """

    role: str
    content: str | list[dict[str, Any]]
    weight: NotRequired[int]
    tool_calls: NotRequired[list[dict[str, Any]]]


def as_messages(prompt: Any) -> Any:
    """A text, a picture or sound, or the parts of one message, as one user message; messages as they are.

    Raises:
        PromptError: there is nothing to answer: the last message is blank.
    """
    content = prompt if isinstance(prompt, str) else _as_parts([prompt] if _is_medium(prompt) else prompt)
    messages = prompt if content is None else [{"role": "user", "content": content}]
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    if isinstance(content, str) and not content.strip() and last is not None and last.get("role") != "tool":
        raise PromptError("the prompt is empty: there is nothing to answer")
    return messages


def _is_medium(prompt: Any) -> bool:
    """Whether it is a picture or sound by itself; a tuple may also be two parts."""
    if isinstance(prompt, tuple):
        return len(prompt) == 2 and isinstance(prompt[1], int | float)
    return not isinstance(prompt, str | list) and kind_of_value(prompt) is not None


def _as_parts(prompt: Any) -> list[Any] | None:
    """OpenAI's form of a list of parts; None where the list holds messages, or is none."""
    if not isinstance(prompt, list | tuple):
        return None
    kinds = [_kind_of_part(part) for part in prompt]
    if not any(kinds) or any(isinstance(part, Mapping) and "role" in part for part in prompt):
        return None
    parts: list[Any] = []
    for part, kind in zip(prompt, kinds, strict=True):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            typed = kind is None or (isinstance(part, Mapping) and "type" in part)
            parts.append(part if typed else {"type": kind, kind: part})
    return parts


def _kind_of_part(part: object) -> str | None:
    """What kind of input a part is; None for what is no part."""
    if isinstance(part, Mapping) and "type" in part:
        return str(part["type"])
    return kind_of_value(part)


def check_messages(
    messages: object,
    where: str = "messages",
    error: type[UserError] = PromptError,
    *,
    inputs: Collection[str] = (),
    root: Path | None = None,
    files: bool = True,
    videos: bool = False,
    tools: bool = False,
) -> list[Message]:
    """The messages in one form, or an error that says which one is wrong.

    A system message may come first; then user and assistant take turns, the user first. Content is a
    string, or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}` and so on
    (also OpenAI's `image_url` and `input_audio`). The texts of several parts are joined as they are; where
    all are text, content becomes a string. Only the user's and the system's messages hold media. OpenAI's `weight` of
    an answer, 0 or 1, says whether it is learnt; 1 is left out. Other keys of a message are annotations and left out,
    except those that would change its meaning, such as `tool_calls`.

    Args:
        messages: what the user gave.
        where: names the place in errors, for example `chats.jsonl:7`.
        error: class of the errors.
        inputs: what is understood besides text: "image" (also video), "audio".
        root: what relative paths are relative to; None for the working directory.
        files: False refuses paths, so that a message can only bring its media with it.
        videos: open video files (path or bytes) for their frames; False wants a list of pictures.
        tools: the assistant's messages may have `tool_calls`, and what those gave may follow as role tool.

    Raises:
        error: naming `where`, the message's number and what is allowed.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise error(f'{where}: must be a list of {{"role": ..., "content": ...}}, not {name_of_type(messages)}')
    if not messages:
        raise error(f"{where}: holds no message")
    rules = PartRules(inputs, root, files, error, videos)
    checked = [_check_message(message, f"{where}: message {n}", rules, tools) for n, message in enumerate(messages, 1)]
    expected: tuple[str, ...] = ("user",)
    called = False
    for number, message in enumerate(checked, 1):
        role = message["role"]
        if role == "tool":
            if not called:
                raise error(f"{where}: message {number}: a tool's message follows the assistant's `tool_calls`")
            expected = ("assistant", "user")
            continue
        called = bool(message.get("tool_calls"))
        if role == "system":
            if number > 1:
                raise error(f"{where}: message {number}: a system message can only come first")
        elif role not in expected:
            raise error(
                f"{where}: message {number}: is the {role}'s, but it is the {expected[0]}'s turn (user and "
                "assistant alternate, the user begins)"
            )
        else:
            expected = ("assistant",) if role == "user" else ("user",)
    return checked


def _check_message(message: object, where: str, rules: PartRules, tools: bool) -> Message:
    error = rules.error
    if not isinstance(message, Mapping):
        raise error(f'{where}: must be {{"role": ..., "content": ...}}, not {name_of_type(message)}')
    if "role" not in message or "content" not in message:
        keys = ", ".join(map(str, message)) or "none"
        raise error(f'{where}: needs the keys "role" and "content"; it has: {keys}')
    role = message["role"]
    roles = (*ROLES, "tool") if tools else ROLES
    if role not in roles:
        raise error(f"{where}: role {role!r} is not known; it must be one of {', '.join(roles)}")
    for key in ("function_call", "audio") if tools else ("tool_calls", "function_call", "audio"):
        if message.get(key) is not None:
            raise error(f"{where}: {key!r} is not supported by this model")
    content = _content_of(message["content"], where, rules)
    if role in ("assistant", "tool") and not isinstance(content, str):
        raise error(f"{where}: the {role} answers in text; only the others' messages hold media")
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise error(f"{where}: weight = {weight!r}: must be 0 (the answer is not learnt) or 1")
    checked: Message = {"role": role, "content": content}
    if role == "assistant" and message.get("tool_calls"):
        checked["tool_calls"] = list(message["tool_calls"])
    return {**checked, "weight": 0} if role == "assistant" and weight == 0 else checked


def is_learnt(message: Message) -> bool:
    """Whether a checked message is an answer that is learnt."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _content_of(content: object, where: str, rules: PartRules) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise rules.error(f"{where}: content must be a text or a list of parts, not {name_of_type(content)}")
    parts = [rules.part(part, f"{where}: part {number}") for number, part in enumerate(content, 1)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def text_of(message: Message) -> str:
    """The text of a checked message, without its media."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def has_media(messages: Sequence[Message]) -> bool:
    """Whether checked messages hold more than text."""
    return any(not isinstance(message["content"], str) for message in messages)


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as token ids.

    Attributes:
        ids: the tokens.
        answer_mask: as long as `ids`; True on the assistant's content and its `<|im_end|>`; not where the weight is 0.
        media: pictures, sounds and frames of videos, in order.
        places: where in `ids` each medium's placeholder stands: the only one, or after `expand` the first.
    """

    ids: list[int]
    answer_mask: list[bool]
    media: tuple[MediaPart, ...] = ()
    places: tuple[int, ...] = ()


def expand(encoded: EncodedChat, counts: Sequence[int]) -> EncodedChat:
    """The conversation with each medium's placeholder repeated.

    Args:
        encoded: with one placeholder for each medium.
        counts: for each medium, how many tokens its encoder gives; at least 1.
    """
    ids: list[int] = []
    mask: list[bool] = []
    places = []
    done = 0
    for place, count in zip(encoded.places, counts, strict=True):
        if count < 1:
            raise ValueError(f"a medium takes at least one token, not {count}")
        ids += encoded.ids[done:place]
        mask += encoded.answer_mask[done:place]
        places.append(len(ids))
        ids += [encoded.ids[place]] * count
        mask += [False] * count
        done = place + 1
    return EncodedChat(ids + encoded.ids[done:], mask + encoded.answer_mask[done:], encoded.media, tuple(places))


def encode_chat(
    tokenizer: "Tokenizer",
    messages: object,
    add_generation_prompt: bool = False,
    *,
    inputs: Collection[str] = (),
    files: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EncodedChat:
    """The ids of a conversation, and which of them are the assistant's words.

    The ids are those of Hugging Face's `apply_chat_template` with the same folder, except where that
    would be unsafe: a special token's name inside a message, such as `<|im_end|>`, is encoded here as
    the plain text it is, while Hugging Face turns it into the token, so that a user could end their
    own turn and speak as the assistant.

    An answer's tokens begin exactly behind the header `<|im_start|>assistant` and its newline, so what is learnt is
    what a generation continues.

    Args:
        tokenizer: of the model.
        messages: see `check_messages`.
        add_generation_prompt: end with the opening of an assistant's turn; the last message must then
            not be the assistant's.
        inputs: see `check_messages`.
        files: see `check_messages`.
        tools: that the assistant may call, in OpenAI's form; None refuses messages about tools, too.

    Raises:
        PromptError: the messages are not a conversation, the template refuses them or has no place for their
            media, or the tokenizer lacks the tokens for those.
        MediaError: a video file cannot be read.
    """
    checked = check_messages(messages, inputs=inputs, files=files, videos=True, tools=tools is not None)
    if add_generation_prompt and checked[-1]["role"] == "assistant":
        raise PromptError("messages: the last one is the assistant's, so there is nothing to answer")
    return encode_chats(tokenizer, [checked], add_generation_prompt, tools or ())[0]


def encode_chats(
    tokenizer: "Tokenizer",
    chats: Sequence[Sequence[Message]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[EncodedChat]:
    """Many conversations at once, on all cores; each as `encode_chat`, its messages already checked."""
    media = [tuple(_media_of(chat)) for chat in chats]
    parts: list[list[_Part]] = [
        list(_parts(tokenizer, chat, add_generation_prompt, inside, tools))
        for chat, inside in zip(chats, media, strict=True)
    ]
    texts = [part.text for chat in parts for part in chat if part.special is None]
    encoded = iter(tokenizer.encode_batch(texts))
    results = []
    for chat_parts, inside in zip(parts, media, strict=True):
        ids: list[int] = []
        mask: list[bool] = []
        places: list[int] = []
        for part in chat_parts:
            new = next(encoded) if part.special is None else [part.special]
            if part.special is not None and part.text in PLACEHOLDERS:
                places.append(len(ids))
            ids += new
            mask += [part.answer] * len(new)
        results.append(EncodedChat(ids, mask, inside, tuple(places)))
    return results


def _media_of(chat: Sequence[Message]) -> Iterator[MediaPart]:
    for message in chat:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] == "image":
                yield MediaPart("image", part["image"], part.get("caption"))
            elif part["type"] == "audio":
                yield MediaPart("audio", part["audio"], part.get("transcript"))
            elif part["type"] == "video":
                yield from (MediaPart("image", frame, None, number) for number, frame in enumerate(part["video"]))


@dataclass(frozen=True)
class _Part:
    """A stretch of a rendered conversation: plain text, or the special token `special`."""

    text: str
    special: int | None
    answer: bool


def _parts(
    tokenizer: "Tokenizer",
    chat: Sequence[Message],
    add_generation_prompt: bool,
    media: Sequence[MediaPart],
    tools: Sequence[Mapping[str, Any]],
) -> Iterator[_Part]:
    """Cuts the rendered conversation at the special tokens that the template wrote, and at answers' starts."""
    pattern = tokenizer.special_pattern
    kinds = [part.kind for part in media]
    for mark, kind in PLACEHOLDERS.items():
        if kind in kinds and not pattern.fullmatch(mark):
            raise PromptError(f"this tokenizer has no token {mark}, so there is no place for {kind} input")
    shielded, shielded_tools, names = _shield(chat, tools, pattern)
    rendered = tokenizer.chat_template.render(shielded, add_generation_prompt, shielded_tools)
    header = "assistant\n"
    answer = False
    learnt = iter([is_learnt(message) for message in chat if message["role"] == "assistant"])
    previous = ""
    pieces = re.split(f"({pattern.pattern})", rendered)
    if [PLACEHOLDERS[piece] for piece in pieces if piece in PLACEHOLDERS] != kinds:
        wanted = " and ".join(sorted(set(kinds)))
        raise PromptError(f"the tokenizer's chat template does not write the places of {wanted} input")
    for piece in pieces:
        if pattern.fullmatch(piece):
            yield _Part(piece, tokenizer.id_of(piece), answer and piece not in MEDIA_MARKS)
            answer = False if piece in (SPECIAL.im_start, SPECIAL.im_end) else answer
        else:
            for stand_in, name in names.items():
                piece = piece.replace(stand_in, name)
            if previous == SPECIAL.im_start and piece.startswith(header):
                yield _Part(header, None, False)
                piece = piece.removeprefix(header)
                answer = next(learnt, True)
            if piece:
                yield _Part(piece, None, answer)
        previous = piece


def _shield(
    chat: Sequence[Message], tools: Sequence[Mapping[str, Any]], pattern: "re.Pattern[str]"
) -> tuple[list[Message], list[dict[str, Any]], dict[str, str]]:
    """The messages and tools as the template gets them: without the names of special tokens.

    Each such name in their text is replaced by a stand-in, and of media there is only what kind they are, since a path
    may hold such a name too.

    Returns:
        the messages, the tools, and the name behind each stand-in. Stand-ins are made of private-use characters
        that occur in no message.
    """
    texts = [text_of(message) for message in chat]
    calls = [call for message in chat for call in message.get("tool_calls", [])]
    texts.append(json.dumps([tools, calls], ensure_ascii=False) if tools or calls else "")
    names: dict[str, str] = {}
    runs = (len(run) for text in texts for run in re.findall("\ue000+", text))
    opening = "\ue000" * (max(runs, default=0) + 1)

    def stand_in(match: "re.Match[str]") -> str:
        name = f"{opening}{len(names)}\ue001"
        names[name] = match[0]
        return name

    def shielded(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        if kind == "text":
            return {"type": "text", "text": pattern.sub(stand_in, part["text"])}
        return {"type": kind, kind: [""] * len(part[kind]) if kind == "video" else ""}

    def replaced(text: str) -> str:
        return pattern.sub(stand_in, text)

    messages: list[Message] = []
    for message in chat:
        content = message["content"]
        clean = replaced(content) if isinstance(content, str) else [shielded(part) for part in content]
        messages.append({"role": message["role"], "content": clean})
        if "tool_calls" in message:
            messages[-1]["tool_calls"] = _texts_replaced(message["tool_calls"], replaced)
    return messages, cast("list[dict[str, Any]]", _texts_replaced(list(tools), replaced)), names


def _texts_replaced(value: T, replaced: Callable[[str], str]) -> T:
    """A value of JSON with other texts, keys too."""
    if isinstance(value, str):
        return cast("T", replaced(value))
    if isinstance(value, Mapping):
        return cast("T", {replaced(key): _texts_replaced(inner, replaced) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return cast("T", [_texts_replaced(inner, replaced) for inner in value])
    return value
