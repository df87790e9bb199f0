"""The speech of a conversation's replies: collected, written, and played where it can be."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from muomni.cli.common.audio_output import Player, check_target, numbered, write_sound
from muomni.errors import SpeechError, UserError

if TYPE_CHECKING:
    from muomni.data.media.audio import Samples
    from muomni.infer import Chunk


class Voiced:
    """Takes the replies' pieces in and writes a file for each reply; use it with `with`.

    Args:
        target: the file; with several replies `out-1.wav`, `out-2.wav`, ...
        voice: one of the model's, None for its first.
        one: there is one reply alone.
        played: somebody is there: play the speech as it comes, where that can be done.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, target: Path, voice: str | None, *, one: bool, played: bool) -> None:
        check_target(target)
        self._settings: dict[str, Any] = {} if voice is None else {"voice": voice}
        self._target, self._one = target, one
        self._parts: list[Samples] = []
        self._rate = self._count = 0
        self._player: Player | None = None
        self._silent = ""
        if played:
            try:
                self._player = Player()
            except UserError as error:  # said with the first reply, and the file is written all the same
                self._silent = f" (not played: {error})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._player is not None:
            self._player.__exit__(kind, error, at)

    def begin(self) -> dict[str, Any]:
        """Before a reply; gives the `speak` of `MuOmni.stream`."""
        self._parts.clear()
        return self._settings

    def hear(self, piece: "Chunk") -> None:
        """Takes a piece's sound, if it has any."""
        if piece.audio is None or piece.sample_rate is None or not len(piece.audio):
            return
        samples = piece.audio.numpy()
        self._parts.append(samples)
        self._rate = piece.sample_rate
        if self._player is not None:
            self._player.play(samples, self._rate)

    def stop(self) -> None:
        """The reply was stopped: what was heard of it is forgotten, and playing ends."""
        self._parts.clear()
        if self._player is not None:
            self._player.stop()

    def finish(self) -> str:
        """Writes what was heard of a reply, and says so in words.

        Raises:
            SpeechError: nothing was heard.
            UserError: the file cannot be written.
        """
        if not self._parts:
            raise SpeechError("nothing of the reply was spoken, so no sound was written")
        self._count += 1
        path = self._target if self._one else numbered(self._target, self._count)
        samples = np.concatenate(self._parts)
        write_sound(path, samples, self._rate)
        said = f"{len(samples) / self._rate:.1f} s of speech in {path}{self._silent}"
        self._silent = ""
        return said
