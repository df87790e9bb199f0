"""`muomni chat`: a conversation in the terminal, or through a pipe."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.cli.common.reply_audio import Voiced

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
def command(
    run: options.Run,
    sampling: dict[str, Any],
    decoding: dict[str, Any],
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="Say this, print the reply and end.")
    ] = None,
    image: options.Image = None,
    audio: options.Audio = None,
    video: options.Video = None,
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
    from muomni.cli.common.decoding import Decoding
    from muomni.infer import SamplingParams

    how = Decoding(**decoding)
    how.check(SamplingParams.of(**sampling))  # a wrong setting is told before the model is loaded
    terminal = message is None and sys.stdin.isatty() and sys.stdout.isatty()
    voiced = _voiced(speak, voice, one=message is not None, played=sys.stdout.isatty())
    model = how.load(run)
    with voiced or contextlib.nullcontext():
        chat = Chat(model, sampling, system, terminal=terminal, speculate=how.draft_model(model), voiced=voiced)
        for part in options.media(image, audio, video):
            chat.attach(part)
        _run(chat, run, message)


def _voiced(speak: Path | None, voice: str | None, *, one: bool, played: bool) -> "Voiced | None":
    """Where the replies' speech goes; None where they are not spoken.

    Raises:
        UserError: the file cannot be written, or a voice is named and nothing is to be spoken.
    """
    if speak is None:
        if voice is not None:
            from muomni.errors import UserError

            raise UserError("--voice is the one of --speak OUT.wav")
        return None
    from muomni.cli.common.reply_audio import Voiced

    return Voiced(speak, voice, one=one, played=played)


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
        for line in sys.stdin:
            if not chat.take(line.rstrip("\n")):
                return
        chat.take("")


def _talk(chat: "Chat") -> None:
    """Reads lines from the keyboard until the user ends."""
    from muomni.errors import UserError

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
        voiced: where the replies' speech goes; None where they are not spoken.
    """

    def __init__(
        self,
        model: "MuOmni",
        sampling: dict[str, Any],
        system: str | None,
        *,
        terminal: bool,
        speculate: "bool | MuOmni" = False,
        voiced: "Voiced | None" = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.system = system
        self.terminal = terminal
        self.speculate = speculate
        self.voiced = voiced
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
                self.attach({"type": kind, kind: rest.strip()})
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
        path = Path(part[kind]).expanduser()
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
        from muomni.cli.common.terminal import say, speed
        from muomni.errors import SpeechError
        from muomni.infer import SamplingParams

        content: Any = message
        attached, self.attached = self.attached, []
        if attached:
            content = [*attached, *([{"type": "text", "text": message}] if message.strip() else [])]
        speculate = self.speculate if SamplingParams.of(**self.sampling).is_greedy else False
        prompt = self._prompt(content)
        speak: Any = False if self.voiced is None else self.voiced.begin()
        stream = self.model.stream(prompt, speak=speak, speculate=speculate, **self.sampling)
        try:
            say(stream, hear=None if self.voiced is None else self.voiced.hear)
            ending = speed(stream.reply.timing)
            if stream.reply.finish_reason == "length":
                ending += ", cut at the longest reply"
            if self.voiced is not None:
                ending += f"; {self.voiced.finish()}"
        except (KeyboardInterrupt, SpeechError) as stop:
            if not self.terminal:
                raise
            stream.close()
            if self.voiced is not None:
                self.voiced.stop()
            print()
            ending = str(stop) or "stopped"
        self.turns += [{"role": "user", "content": content}, {"role": "assistant", "content": stream.text}]
        if self.terminal:
            self.note(f"[{ending}]")

    def _prompt(self, content: Any) -> list[dict[str, Any]]:
        """The conversation with the new message, without the oldest turns where there would be too little room."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        new = [{"role": "user", "content": content}]
        context = self.model.config.thinker.max_position_embeddings
        longest = self.sampling.get("max_new_tokens", context)
        dropped = 0
        while self.turns and len(self.model.encode([*first, *self.turns, *new])) + min(longest, context // 4) > context:
            del self.turns[:2]
            dropped += 1
        if dropped and not self._told_of_trimming:
            self._told_of_trimming = True
            self.note(f"The conversation has outgrown the context of {context} tokens: the oldest turns are left out.")
        return [*first, *self.turns, *new]

    def _set(self, text: str) -> None:
        from muomni.errors import PromptError
        from muomni.infer import SamplingParams

        key, equals, value = (part.strip() for part in text.partition("="))
        try:
            if equals:
                changed = self.sampling | {key: _value(value)}
                params = SamplingParams.of(**changed)
                self.sampling = changed
                if self.speculate is not False and not params.is_greedy:
                    self.note(
                        "Tokens are guessed with temperature=0 and repetition_penalty=1 only, so not from now on."
                    )
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
    except ValueError:
        return text
