"""Conversations: checking messages, the chat template, and ids with the mask of what is learnt.

A conversation is ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n` for each turn. The template is Jinja
and is saved with the tokenizer, so Hugging Face's `apply_chat_template` writes the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from muomni.errors import DataError, PromptError, UserError

if TYPE_CHECKING:
    import jinja2

    from muomni.data.tokenizer import Tokenizer

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
ROLES = ("system", "user", "assistant")

# An answer loses white space around it: with a newline at its start, the one after "assistant" would
# be joined with it into one token, which the prompt of a generation never ends in.
CHATML = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type != 'text' -%}
                {{- raise_exception('this model has no ' + part.type + ' input') -}}
            {%- endif -%}
            {{- part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set content = text_of(message.content) -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {{- content | trim if message.role == 'assistant' else content -}}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


def as_messages(prompt: Any) -> Any:
    """A text, or the parts of one message, as one user message; messages as they are.

    Raises:
        PromptError: there is nothing to answer: the last message is blank.
    """
    content = prompt if isinstance(prompt, str) else _as_parts(prompt)
    messages = prompt if content is None else [{"role": "user", "content": content}]
    last = messages[-1].get("content") if messages and isinstance(messages[-1], Mapping) else None
    if isinstance(last, str) and not last.strip():
        raise PromptError("the prompt is empty: there is nothing to answer")
    return messages


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
            parts.append(part if kind is None or isinstance(part, Mapping) else {"type": kind})
    return parts


def _kind_of_part(part: object) -> str | None:
    """What kind of input a part is, by what it is made of; None for what is no part."""
    if isinstance(part, str):
        return "text"
    if isinstance(part, Mapping):
        return str(part["type"]) if "type" in part else None
    if type(part).__module__.partition(".")[0] == "PIL" or isinstance(part, bytes | Path):
        return "image"
    return "audio" if isinstance(part, tuple) else None


def check_messages(messages: object, where: str = "messages", error: type[UserError] = PromptError) -> list[Message]:
    """The messages with plain text content, or an error that says which one is wrong.

    A system message may come first; then user and assistant take turns, the user first. Content is a
    string, or OpenAI's list of parts, of which only `{"type": "text", "text": ...}` is understood so
    far; the texts of several parts are joined as they are. Other keys of a message are annotations and
    left out, except those that would change its meaning, such as `tool_calls`.

    Args:
        messages: what the user gave.
        where: names the place in errors, for example `chats.jsonl:7`.
        error: class of the errors.

    Raises:
        error: naming `where`, the message's number and what is allowed.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise error(f'{where}: must be a list of {{"role": ..., "content": ...}}, not {_kind(messages)}')
    if not messages:
        raise error(f"{where}: holds no message")
    checked = [_check_message(message, f"{where}: message {n}", error) for n, message in enumerate(messages, 1)]
    expected = "user"
    for number, message in enumerate(checked, 1):
        role = message["role"]
        if role == "system":
            if number > 1:
                raise error(f"{where}: message {number}: a system message can only come first")
        elif role != expected:
            raise error(
                f"{where}: message {number}: is the {role}'s, but it is the {expected}'s turn (user and "
                "assistant alternate, the user begins)"
            )
        else:
            expected = "assistant" if role == "user" else "user"
    return checked


def _check_message(message: object, where: str, error: type[UserError]) -> Message:
    if not isinstance(message, Mapping):
        raise error(f'{where}: must be {{"role": ..., "content": ...}}, not {_kind(message)}')
    if "role" not in message or "content" not in message:
        keys = ", ".join(map(str, message)) or "none"
        raise error(f'{where}: needs the keys "role" and "content"; it has: {keys}')
    role = message["role"]
    if role not in ROLES:
        raise error(f"{where}: role {role!r} is not known; it must be one of {', '.join(ROLES)}")
    for key in ("tool_calls", "function_call", "audio"):
        if message.get(key) is not None:
            raise error(f"{where}: {key!r} is not supported by this model")
    return {"role": role, "content": _text_of(message["content"], where, error)}


def _text_of(content: object, where: str, error: type[UserError]) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise error(f"{where}: content must be a text or a list of parts, not {_kind(content)}")
    texts = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, Mapping) or not isinstance(kind := part.get("type"), str):
            raise error(f'{where}: part {number} must be {{"type": "text", "text": ...}}, not {_kind(part)}')
        if kind != "text":
            name = kind.removeprefix("input_").removesuffix("_url").removesuffix("_input")
            raise error(f"{where}: part {number}: this model has no {name} input, only text")
        if not isinstance(text := part.get("text"), str):
            raise error(f"{where}: part {number}: its text must be a string, not {_kind(text)}")
        texts.append(text)
    return "".join(texts)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, rendered the way Hugging Face renders it, in Jinja's sandbox.

    Attributes:
        source: the template's text.
        variables: what it may use besides `messages` and `add_generation_prompt`: `bos_token` and such.
    """

    source: str = CHATML
    variables: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """The conversation as text.

        Args:
            messages: as `check_messages` returns them.
            add_generation_prompt: end with the opening of an assistant's turn.

        Raises:
            PromptError: the template refuses the messages.
            DataError: the template is not valid Jinja.
        """
        import jinja2

        try:
            return self._compiled.render(
                **{"tools": None, "documents": None, **self.variables},
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        except jinja2.TemplateError as error:
            raise PromptError(f"the chat template refuses these messages: {error.message}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles leave out the compiled template, which allows neither.
        return type(self), (self.source, dict(self.variables))

    @cached_property
    def _compiled(self) -> "jinja2.Template":
        import json
        from datetime import datetime

        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # Options and helpers that templates made for Hugging Face's renderer count on.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_blocks()]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.source)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _generation_blocks() -> "type[jinja2.ext.Extension]":
    """Lets templates hold `{% generation %}` marks; answers are found without them."""
    from jinja2 import nodes, parser
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlocks


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as token ids.

    Attributes:
        ids: the tokens.
        answer_mask: as long as `ids`; True on the assistant's content and its `<|im_end|>`.
    """

    ids: list[int]
    answer_mask: list[bool]


def encode_chat(tokenizer: "Tokenizer", messages: object, add_generation_prompt: bool = False) -> EncodedChat:
    """The ids of a conversation, and which of them are the assistant's words.

    The ids are those of Hugging Face's `apply_chat_template` with the same folder, except where that
    would be unsafe: a special token's name inside a message, such as `<|im_end|>`, is encoded here as
    the plain text it is, while Hugging Face turns it into the token, so that a user could end their
    own turn and speak as the assistant.

    An answer's tokens begin exactly behind the header `<|im_start|>assistant\\n`, so what is learnt is
    what a generation continues.

    Args:
        messages: see `check_messages`.
        add_generation_prompt: end with the opening of an assistant's turn; the last message must then
            not be the assistant's.

    Raises:
        PromptError: the messages are not a conversation, or the template refuses them.
    """
    checked = check_messages(messages)
    if add_generation_prompt and checked[-1]["role"] == "assistant":
        raise PromptError("messages: the last one is the assistant's, so there is nothing to answer")
    return encode_chats(tokenizer, [checked], add_generation_prompt)[0]


def encode_chats(
    tokenizer: "Tokenizer", chats: Sequence[Sequence[Message]], add_generation_prompt: bool = False
) -> list[EncodedChat]:
    """Many conversations at once, on all cores; each as `encode_chat`, its messages already checked."""
    parts: list[list[_Part]] = [list(_parts(tokenizer, chat, add_generation_prompt)) for chat in chats]
    texts = [part.text for chat in parts for part in chat if part.special is None]
    encoded = iter(tokenizer.encode_batch(texts))
    results = []
    for chat in parts:
        ids: list[int] = []
        mask: list[bool] = []
        for part in chat:
            new = next(encoded) if part.special is None else [part.special]
            ids += new
            mask += [part.answer] * len(new)
        results.append(EncodedChat(ids, mask))
    return results


@dataclass(frozen=True)
class _Part:
    """A stretch of a rendered conversation: plain text, or the special token `special`."""

    text: str
    special: int | None
    answer: bool


def _parts(tokenizer: "Tokenizer", chat: Sequence[Message], add_generation_prompt: bool) -> Iterator[_Part]:
    """Cuts the rendered conversation at the special tokens that the template wrote, and at answers' starts."""
    pattern = tokenizer.special_pattern
    shielded, names = _shield(chat, pattern)
    rendered = tokenizer.chat_template.render(shielded, add_generation_prompt)
    header = "assistant\n"
    answer = False
    previous = ""
    for piece in re.split(f"({pattern.pattern})", rendered):
        if pattern.fullmatch(piece):
            yield _Part(piece, tokenizer.id_of(piece), answer)
            answer = False if piece in (IM_START, IM_END) else answer
        else:
            for stand_in, name in names.items():
                piece = piece.replace(stand_in, name)
            if previous == IM_START and piece.startswith(header):
                yield _Part(header, None, False)
                piece = piece.removeprefix(header)
                answer = True
            if piece:
                yield _Part(piece, None, answer)
        previous = piece


def _shield(chat: Sequence[Message], pattern: "re.Pattern[str]") -> tuple[list[Message], dict[str, str]]:
    """The messages with each special token's name in their content replaced by a stand-in.

    Returns:
        the messages, and the name behind each stand-in. Stand-ins are made of private-use characters
        that occur in no message.
    """
    if not any(pattern.search(message["content"]) for message in chat):
        return list(chat), {}
    opening = "\ue000"
    while any(opening in message["content"] for message in chat):
        opening += "\ue000"
    names: dict[str, str] = {}

    def stand_in(match: "re.Match[str]") -> str:
        name = f"{opening}{len(names)}\ue001"
        names[name] = match[0]
        return name

    return [{"role": m["role"], "content": pattern.sub(stand_in, m["content"])} for m in chat], names
