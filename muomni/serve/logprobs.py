"""Logprobs in OpenAI's forms, whole and in chunks: each token comes with the text that it completes.

A character may be made of several tokens, and text that may begin a stop text is held back; tokens wait as their text
does. Those behind the beginning of a stop text, and the one that ends a reply, do not come at all.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from muomni.infer.engine.scheduler import Request
from muomni.infer.logprobs import TokenLogprob

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# JSON knows no infinity; the official clients' documentation names this number for it.
_LEAST = -9999.0


class _Group(NamedTuple):
    """Tokens that complete whole characters only together, with where their text begins and ends in the reply."""

    tokens: list[tuple[TokenLogprob, int]]
    begin: int
    end: int


class ReplyLogprobs:
    """The logprobs of one reply, given out with its text.

    Args:
        tokenizer: of the model.
        request: whose settings want them.
        chat: the form of a chat's logprobs; else that of a plain continuation's.
    """

    def __init__(self, tokenizer: "Tokenizer", request: Request, *, chat: bool) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._form = self._chat if chat else self._text
        self._decoder = tokenizer.stream()
        self._read = 0
        self._characters = 0  # that the tokens read have completed
        self._shown = 0  # that have been given out
        self._groups: deque[_Group] = deque()
        self._open: list[tuple[TokenLogprob, int]] = []  # tokens of a character that is not complete

    def push(self, text: str) -> None:
        """Takes in what follows of the reply's text."""
        self._shown += len(text)

    def take(self, *, last: bool = False) -> dict[str, Any] | None:
        """The tokens whose text is complete since the last call; None where there are none.

        Args:
            last: the text is complete.
        """
        self._read_tokens()
        taken: list[tuple[TokenLogprob, int]] = []
        while self._groups and self._groups[0].end <= self._shown:
            taken += self._groups.popleft().tokens
        if last:
            # Half a character at the end has become a character, and part of a token may stand before a stop text.
            for group in self._groups:
                taken += group.tokens if group.begin < self._shown else []
            taken += self._open if self._open and self._open[0][1] < self._shown else []
        return self._form(taken) if taken else None

    def whole(self, text: str) -> dict[str, Any]:
        """All of a reply that is known."""
        self.push(text)
        return self.take(last=True) or self._form([])

    def _read_tokens(self) -> None:
        request = self._request
        while self._read < len(request.tokens) and request.tokens[self._read] not in request.ends:
            begin = self._open[0][1] if self._open else self._characters
            self._open.append((request.logprobs[self._read], self._characters))
            self._characters += len(self._decoder.push([request.tokens[self._read]]))
            self._read += 1
            if not self._decoder.waiting:
                self._groups.append(_Group(self._open, begin, self._characters))
                self._open = []

    def _chat(self, taken: Sequence[tuple[TokenLogprob, int]]) -> dict[str, Any]:
        content = []
        for told, _ in taken:
            top = [self._entry(token, logprob) for token, logprob in told.top]
            content.append({**self._entry(told.token, told.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        entry = {"token": self._name(token), "logprob": max(logprob, _LEAST)}
        return {**entry, "bytes": list(self._tokenizer.bytes_of(token))}

    def _text(self, taken: Sequence[tuple[TokenLogprob, int]]) -> dict[str, Any]:
        return {
            "tokens": [self._name(told.token) for told, _ in taken],
            "token_logprobs": [max(told.logprob, _LEAST) for told, _ in taken],
            "top_logprobs": [self._named(told) for told, _ in taken],
            "text_offset": [offset for _, offset in taken],
        }

    def _named(self, told: TokenLogprob) -> dict[str, float]:
        """The most likely tokens and the reply's own, by their texts; of two with the same the more likely."""
        entries: dict[str, float] = {}
        for token, logprob in [*told.top, told[:2]]:
            entries.setdefault(self._name(token), max(logprob, _LEAST))
        return entries

    def _name(self, token: int) -> str:
        r"""The text of a token; of one that is part of a character `bytes:\xe2\x82`, as OpenAI writes it."""
        data = self._tokenizer.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
