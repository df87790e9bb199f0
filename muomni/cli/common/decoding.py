"""How a command loads its model and decodes with it: `--device`, `--runner`, `--draft-model`, ..."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from muomni.cli.common import options
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.infer import SamplingParams


@dataclass(frozen=True)
class Decoding:
    """The values of `options.DECODING`.

    Raises:
        UserError: both --speculate and --draft-model are given.
    """

    tuned: Path | None = None
    cache: options.CacheDtype | None = None
    runner: options.RunnerName | None = None
    speculate: bool | None = None
    draft: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.speculate and self.draft is not None:
            raise UserError(
                "--speculate guesses from the text so far, --draft-model by a smaller run: give one of them"
            )

    def load(self, run: str) -> "MuOmni":
        """The model.

        Raises:
            UserError: it cannot be loaded.
            ConfigError: --tuned-config is no `tuned.json`.
        """
        model = self._load(run, int8=options.int8_by(self.tuned, run))
        if self.cache is not None:
            model.cache_dtype = self.cache
        return model

    def draft_model(self, model: "MuOmni") -> "bool | MuOmni":
        """The `speculate` of `MuOmni.stream`; loads the smaller run.

        Raises:
            UserError: there is no such run, or it has other tokens.
        """
        if self.draft is None:
            return bool(self.speculate)
        from muomni.infer.speculative.draft_model import check_same_tokens

        draft = self._load(self.draft)
        check_same_tokens((model, draft), (model.tokenizer, draft.tokenizer))
        return draft

    def _load(self, run: str, *, int8: bool = False) -> "MuOmni":
        from muomni.api.model import MuOmni

        return MuOmni.from_pretrained(run, device=self.device or "auto", int8=int8, runner=self.runner)

    @property
    def drafts(self) -> bool:
        """Whether tokens are drafted."""
        return bool(self.speculate) or self.draft is not None

    @property
    def option(self) -> str:
        """The option that asks for drafts."""
        return "--speculate" if self.speculate else "--draft-model"

    def refuse_drafts(self, other: str) -> None:
        """Refuses drafts together with another option.

        Raises:
            UserError: tokens are drafted.
        """
        if self.drafts:
            raise UserError(f"{self.option} does not go together with {other}: give one of them")

    def check(self, params: "SamplingParams") -> None:
        """Refuses sampling settings with which nothing is drafted.

        Raises:
            UserError: naming the settings.
        """
        if self.drafts and not params.is_greedy:
            raise UserError(
                f"{self.option} guesses the most likely tokens and needs --temperature 0 without --repetition-penalty; "
                f"these are {params.temperature} and {params.repetition_penalty}"
            )
