"""The settings of speech."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from muomni.errors import PromptError
from muomni.infer.sampling import check_names, is_number, is_whole

Moves = Literal["auto", "expected", "drawn"]


@dataclass(frozen=True)
class SpeechSettings:
    """The settings of one text.

    Attributes:
        voice: one of the Talker's; None takes its first.
        temperature: of the codes; 0 takes the most likely ones, always the same speech.
        top_k: keep the k most likely values of a code; 0 keeps all.
        seed: the same seed gives the same speech; None draws a new one each time.
        moves: how the place in the text moves on, see `infer.speech.speaker`; `auto` is `expected` at temperature 0
            and `drawn` elsewhere.
        pause: seconds of silence between two sentences, each of which is spoken by itself.

    Raises:
        PromptError: naming the setting, its value and what is allowed.
    """

    voice: str | None = None
    temperature: float = 0.7
    top_k: int = 50
    seed: int | None = None
    moves: Moves = "auto"
    pause: float = 0.25

    def __post_init__(self) -> None:
        allowed = {
            "voice": (self.voice is None or isinstance(self.voice, str), "the name of a voice, or None"),
            "temperature": (
                is_number(self.temperature) and (self.temperature == 0 or self.temperature >= 1e-6),
                "0 (the most likely codes) or a positive number, at least 1e-6",
            ),
            "top_k": (is_whole(self.top_k), "a whole number, at least 0 (0 keeps all)"),
            "seed": (
                self.seed is None or (is_whole(self.seed) and self.seed < 2**63),
                "a whole number from 0 to 2**63 - 1, or None",
            ),
            "moves": (self.moves in get_args(Moves), f"one of {', '.join(get_args(Moves))}"),
            "pause": (is_number(self.pause) and 0 <= self.pause <= 10, "seconds, from 0 to 10"),
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise PromptError(f"{name} = {getattr(self, name)!r}: must be {rule}")

    @classmethod
    def of(cls, **settings: Any) -> "SpeechSettings":
        """From keyword arguments; an unknown one is an error that says which was probably meant."""
        check_names(cls, "speech", settings)
        return cls(**settings)

    @property
    def draws_moves(self) -> bool:
        """Whether moves are drawn rather than expected."""
        return self.moves == "drawn" or (self.moves == "auto" and self.temperature > 0)

    def voice_number(self, voices: Sequence[str]) -> int:
        """Which of the Talker's voices.

        Raises:
            PromptError: it has none of that name.
        """
        if self.voice is None:
            return 0
        if self.voice not in voices:
            raise PromptError(f"voice = {self.voice!r}: the model's voices are {', '.join(voices)}")
        return list(voices).index(self.voice)
