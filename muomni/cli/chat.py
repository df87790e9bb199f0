"""`muomni chat`: a conversation in the terminal, or through a pipe."""

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options
from muomni.errors import PromptError, SpeechError, UserError
from muomni.files import exists, user_path

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.cli.common.sound import SpokenReplies

_HELP = """\
/help               this list
/reset              forget the conversation
/system TEXT        what the system message says from now on; without TEXT there is none
/set                the sampling settings
/set KEY=VALUE      change one, for example /set temperature=0.5
/image FILE         show a picture with the next message
/audio FILE         play a sound with the next message; an empty line then sends it alone
/video FILE         show a video with the next message
/quit               end; so does Ctrl-D
Ctrl-C stops a reply. Everything else you type goes to the model."""


@options.group("sampling", options.SAMPLING)
@options.group("decoding", options.DECODING)
@options.group("media", options.MEDIA)
def command(
    run: options.Run,
    sampling: dict[str, Any],
    decoding: dict[str, Any],
    media: dict[str, list[str]],
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="Say this, print the reply and end.")
    ] = None,
    system: options.System = None,
    speak: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.wav",
            help="Speak the replies too, into this file (.wav or .flac; in a conversation OUT-1.wav, OUT-2.wav, ...). "
            'In a terminal they are also played, with the extra "play".',
        ),
    ] = None,
    voice: options.Voice = None,
) -> None:
    """Talk to a model. Through a pipe, each line is a message and each reply is printed.

    Pictures, sounds and videos go with the first message; an empty line sends them alone.

    Example: muomni chat runs/demo --system "Answer in one sentence."

    Example: muomni chat runs/omni --image cat.png -m "What is this?"

    Example: muomni chat runs/speak -m "Tell me a story." --speak story.wav
    """
    from muomni.infer import SamplingParams

    how = options.Decoding(**decoding)
    how.check(SamplingParams.of(**sampling))  # a wrong setting is told before the model is loaded
    if voice is not None and speak is None:
        raise UserError("--voice is the one of --speak OUT.wav")
    with contextlib.ExitStack() as stack:
        spoken = None
        if speak is not None:
            from muomni.cli.common.sound import SpokenReplies

            spoken = stack.enter_context(SpokenReplies(speak, one=message is not None, played=sys.stdout.isatty()))
        model = how.load(run)
        chat = Chat(model, sampling, system, speculate=how.drafts(model), spoken=spoken, voice=voice)
        chat.terminal = message is None and sys.stdin.isatty() and sys.stdout.isatty()
        for part in options.parts(media):
            chat.attach(part)
        _run(chat, run, message)


def _run(chat: "Chat", run: str, message: str | None) -> None:
    """One message, a conversation at the keyboard, or lines through a pipe."""
    if message is not None:
        chat.answer(message)
    elif chat.terminal:
        model = chat.model
        context = model.config.thinker.max_position_embeddings
        size = f"{model.num_parameters() / 1e6:.3g} M parameters"
        chat.note(f"{run}: {size}, context {context} tokens, on {model.device}. /help lists commands, Ctrl-D ends.")
        _talk(chat)
    else:
        try:
            going = all(chat.take(line.rstrip("\n")) for line in sys.stdin)
        except UnicodeDecodeError as error:
            raise PromptError(f"standard input is not UTF-8 text (byte {error.start} of what was read last)") from None
        if going:
            chat.take("")


def _talk(chat: "Chat") -> None:
    """Reads lines from the keyboard until the user ends."""
    with contextlib.suppress(ImportError):  # line editing and history, where the system has them
        import readline  # noqa: F401
    going = True
    while going:
        try:
            going = chat.take(input("> "))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            chat.note("Ctrl-D or /quit ends.")
        except UnicodeDecodeError:
            chat.note("This is not UTF-8 text.")
        except UserError as error:
            chat.note(str(error))


class Chat:
    """A conversation: what was said, and the settings.

    Args:
        model: answers.
        sampling: settings by name; those not there have their defaults.
        system: what the system message says, or None.
        terminal: somebody is looking: show speed and notes.
        speculate: see `MuOmni.chat`.
        spoken: where the replies' speech goes; None where they are not spoken.
        voice: of the speech; None for the model's first.
    """

    def __init__(
        self,
        model: "MuOmni",
        sampling: dict[str, Any],
        system: str | None,
        *,
        terminal: bool = False,
        speculate: "bool | MuOmni" = False,
        spoken: "SpokenReplies | None" = None,
        voice: str | None = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.system = system
        self.terminal = terminal
        self.speculate = speculate
        self.spoken = spoken
        self.speak: Any = False if spoken is None else options.given(voice=voice)
        self.turns: list[dict[str, Any]] = []
        self.attached: list[dict[str, Any]] = []
        self._told_of_trimming = False

    def note(self, text: str) -> None:
        """A line that is not the model's, dimmed, on standard error."""
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, highlight=False).print(Text(text, style="dim"))

    def take(self, line: str) -> bool:
        """Obeys a command or answers a message; False when the user wants to end.

        Raises:
            UserError: the message cannot be answered; the conversation is as before.
        """
        if not line.strip():
            if self.attached:
                self.answer("")
            return True
        if not line.startswith("/"):
            self.answer(line)
            return True
        name, _, rest = line.strip().partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            self.note(_HELP)
        elif name == "/reset":
            self.turns.clear()
            self.note("The conversation is forgotten.")
        elif name == "/system":
            self.system = rest.strip() or None
            self.note(f"System message: {self.system or 'none'}")
        elif name == "/set":
            self._set(rest.strip())
        elif name in ("/image", "/audio", "/video"):
            kind = name[1:]
            if rest.strip():
                self.attach({"type": kind, kind: _typed_path(rest.strip())})
            else:
                self.note(f"Write it as {name} FILE.")
        else:
            self.note(f"There is no command {name}. /help lists them.")
        return True

    def attach(self, part: dict[str, Any]) -> None:
        """Puts a picture, sound or video beside the next message; it is encoded at once, while the user types.

        Raises:
            UserError: the model does not take it, or it cannot be read.
        """
        from muomni.data.media.media_ref import open_bytes
        from muomni.infer import SamplingParams

        kind = part["type"]
        path = Path(part[kind])
        if kind == "video" and self.model.config.vision is not None:
            from muomni.data.media.video import video_frames

            part = {"type": kind, kind: video_frames(path)}
        alone = [{"role": "user", "content": [part]}]
        self.model.runtime.prepare(self.model, self.model.tokenizer, [(alone, SamplingParams())])
        # The conversation goes on when the file is gone.
        self.attached.append(part if kind == "video" else {"type": kind, kind: open_bytes(path)})
        if self.terminal:
            self.note(f"{path} goes with the next message; an empty line sends it alone.")

    def answer(self, message: str) -> None:
        """Prints the reply as it comes. Ctrl-C stops it; what was said until then counts.

        What is attached goes with the message; where that cannot be answered it is attached no more.

        Raises:
            UserError: the message cannot be answered; the conversation is as before.
        """
        from muomni.cli.common.output import print_reply, speed
        from muomni.infer import SamplingParams

        content: Any = message
        attached, self.attached = self.attached, []
        if attached:
            content = [*attached, *([{"type": "text", "text": message}] if message.strip() else [])]
        speculate = self.speculate if SamplingParams.of(**self.sampling).is_greedy else False
        prompt = self._prompt(content)
        stream = self.model.stream(prompt, speak=self.speak, speculate=speculate, **self.sampling)
        try:
            print_reply(stream, hear=None if self.spoken is None else self.spoken.hear)
            ending = speed(stream.reply.timing)
            if stream.reply.finish_reason == "length":
                ending += ", cut at the longest reply"
            if self.spoken is not None:
                ending += f"; {self.spoken.finish()}"
        except (KeyboardInterrupt, SpeechError) as stop:
            if not self.terminal:
                raise
            stream.close()
            if self.spoken is not None:
                self.spoken.stop()
            print()
            ending = str(stop) or "stopped"
        sent = [turn for turn in prompt if turn["role"] != "system"]
        if len(sent) <= len(self.turns) and not self._told_of_trimming:
            self._told_of_trimming = True
            context = self.model.config.thinker.max_position_embeddings
            self.note(f"The conversation has outgrown the context of {context} tokens: the oldest turns are left out.")
        self.turns = [*sent, {"role": "assistant", "content": stream.text}]
        if self.terminal:
            self.note(f"[{ending}]")

    def _prompt(self, content: Any) -> list[dict[str, Any]]:
        """The conversation with the new message, without the oldest turns where there would be too little room."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        new = [{"role": "user", "content": content}]
        context = self.model.config.thinker.max_position_embeddings
        room = context - min(self.sampling.get("max_new_tokens", context), context // 4)
        turns = self.turns
        while turns and len(self.model.encode([*first, *turns, *new])) > room:
            turns = turns[2:]
        return [*first, *turns, *new]

    def _set(self, text: str) -> None:
        from muomni.infer import SamplingParams

        key, equals, value = (part.strip() for part in text.partition("="))
        try:
            if equals:
                changed = self.sampling | {key: _value(value)}
                params = SamplingParams.of(**changed)
                self.sampling = changed
                if self.speculate is not False and not params.is_greedy:
                    self.note("Tokens are guessed with temperature=0 and without penalties only, so not from now on.")
            elif text:
                self.note("Write it as /set KEY=VALUE, for example /set temperature=0.5")
                return
            now = vars(SamplingParams.of(**self.sampling))
            self.note(", ".join(f"{name}={json.dumps(setting)}" for name, setting in now.items()))
        except PromptError as error:
            self.note(str(error))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _typed_path(text: str) -> str:
    """A path as it is typed, or dropped into a terminal, which quotes it or escapes its spaces."""
    if not exists(user_path(text)):
        with contextlib.suppress(ValueError):  # a quotation mark of its own
            words = shlex.split(text)
            text = words[0] if len(words) == 1 else text
    return options.local_path(text)
