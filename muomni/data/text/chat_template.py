"""Chat templates: the Jinja text that a tokenizer brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from muomni.errors import DataError, PromptError

if TYPE_CHECKING:
    import jinja2


# An answer loses white space around it: with a newline at its start, the one after "assistant" would
# be joined with it into one token, which the prompt of a generation never ends in. A picture or sound has
# one placeholder here, and so has each frame of a video; `expand` repeats them.
CHATML = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- elif part.type == 'image' -%}
                {{- '<|vision_start|><|image|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}
                {{- '<|vision_start|>' + '<|image|>' * (part.video | length) + '<|vision_end|>' -}}
            {%- elif part.type == 'audio' -%}
                {{- '<|audio_start|><|audio|><|audio_end|>' -}}
            {%- else -%}
                {{- raise_exception('this model has no ' + part.type + ' input') -}}
            {%- endif -%}
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


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, rendered the way Hugging Face renders it, in Jinja's sandbox.

    Attributes:
        source: the template's text.
        variables: what it may use besides `messages` and `add_generation_prompt`: `bos_token` and such.
    """

    source: str = CHATML
    variables: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def has_tools(self) -> bool:
        """Whether it writes tools and their calls, as `<tool_call>` with JSON inside (Qwen's and Hermes' form)."""
        return "tools" in self.source and "<tool_call>" in self.source and "<function=" not in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The conversation as text.

        Args:
            messages: as `check_messages` returns them.
            add_generation_prompt: end with the opening of an assistant's turn.
            tools: that the assistant may call, in OpenAI's form.

        Raises:
            PromptError: the template refuses the messages.
            DataError: the template is not valid Jinja.
        """
        import jinja2

        try:
            return self._compiled.render(
                **{"documents": None, **self.variables, "tools": list(tools) or None},
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
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005  # templates show the user's own time
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
