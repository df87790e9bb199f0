"""`--speculate` and `--draft-model`: who guesses, and a word where guessing could have no effect."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.infer import SamplingParams


@dataclass(frozen=True)
class Speculation:
    """What was asked for.

    Attributes:
        lookup: guess from the text so far.
        draft: the run that guesses, or None.

    Raises:
        UserError: both are given.
    """

    lookup: bool = False
    draft: str | None = None

    def __post_init__(self) -> None:
        if self.lookup and self.draft is not None:
            raise UserError(
                "--speculate guesses from the text so far, --draft-model by a smaller run: give one of them"
            )

    @property
    def wanted(self) -> bool:
        """Whether anybody guesses."""
        return self.lookup or self.draft is not None

    @property
    def option(self) -> str:
        """As it was given."""
        return "--speculate" if self.lookup else "--draft-model"

    def refuse(self, other: str) -> None:
        """Says that guessing does not go together with another option.

        Raises:
            UserError: if anybody guesses.
        """
        if self.wanted:
            raise UserError(f"{self.option} does not go together with {other}: give one of them")

    def check(self, params: "SamplingParams") -> None:
        """Refuses settings with which nothing is guessed.

        Raises:
            UserError: saying which one.
        """
        if self.wanted and not greedy(params):
            raise UserError(
                f"{self.option} guesses the most likely tokens and needs --temperature 0 without --repetition-penalty; "
                f"these are {params.temperature} and {params.repetition_penalty}"
            )

    def guesser(self, model: "MuOmni", device: str) -> "bool | MuOmni":
        """What `MuOmni.stream` takes as `speculate`; reads the run that guesses.

        Raises:
            UserError: there is no such run, or it has other tokens.
        """
        if self.draft is None:
            return self.lookup
        from muomni.api.model import MuOmni
        from muomni.infer.speculative.draft_model import check_same_tokens

        draft = MuOmni.from_pretrained(self.draft, device=device)
        check_same_tokens((model, draft), (model.tokenizer, draft.tokenizer))
        return draft


def greedy(params: "SamplingParams") -> bool:
    """Whether the reply is the most likely tokens, so that they can be guessed."""
    return params.temperature == 0 and params.repetition_penalty == 1
