"""Errors that reach the user. The command line prints them without a traceback."""


def first_line(error: BaseException) -> str:
    """What an error says first; libraries go on for pages."""
    return str(error).partition("\n")[0] or type(error).__name__


class MuOmniError(Exception):
    """Base of every error μOmni raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(MuOmniError):
    """A mistake in what the user gave: a recipe, an option, a file, a prompt."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe or model configuration that cannot be used; names file, key, value and what is allowed."""


class DataError(UserError):
    """Training or evaluation data that is missing, unreadable or empty."""


class MediaError(UserError):
    """A picture, sound or video that is missing, broken, empty or too large; names the file and the reason."""


class PromptError(UserError):
    """A prompt or sampling setting that cannot be served, for example one beyond the context."""


class SettingError(PromptError):
    """A setting that is not allowed.

    Args:
        message: names it, its value and what is allowed.
        setting: its name.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class GrammarError(SettingError):
    """A grammar or JSON schema that a reply cannot follow, and why."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "grammar")


class CheckpointError(MuOmniError):
    """A checkpoint that could not be written or does not load."""


class TrainingError(MuOmniError):
    """Training cannot go on, for example because the loss stays non-finite."""


class MemoryShortageError(TrainingError):
    """Memory ran out in training; says what was asked for, what is in use and which settings would help."""


class ForecastError(MuOmniError):
    """Memory that cannot be forecast, and why."""


class EngineError(MuOmniError):
    """The inference engine cannot serve a request: it is closed, or its cache does not fit the memory."""


class BusyError(EngineError):
    """As many requests as may are waiting already."""


class NonFiniteError(MuOmniError):
    """A model that gives NaN or infinity: weights that are not finite, or numbers too large for their dtype."""


class SpeechError(MuOmniError):
    """A text that could not be spoken: it has nothing to say, or the speech came to no end; says what and where."""
