"""Structured output: a grammar says which tokens may come next, and all others are forbidden before one is drawn.

A grammar is a JSON schema, or a text in llguidance's form of Lark. It is compiled once for a tokenizer (`Grammars`);
each reply then has a `Constraint`, which follows the reply's tokens. After a whole value only the tokens that end a
reply are allowed.

Legend: V vocabulary, k drafted tokens.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.errors import GrammarError, first_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from muomni.data.text.tokenizer import Tokenizer

# Bytes of a grammar at most: a schema of this size may take a tenth of a second to compile.
MOST_BYTES = 64 << 10
# White space between the parts of a JSON value: a space, or a new line that is indented. Without a bound a reply may
# never come to its end.
SPACE = r"( |\n[ \t]{0,12})?"
# States of a lexer take up to 2 kB each.
_LIMITS: Mapping[str, Any] = {"max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False}
# Compiled grammars that are kept.
_KEPT = 16


def grammar_text(grammar: str | Mapping[str, Any]) -> str:
    """A grammar as llguidance reads it.

    Args:
        grammar: a JSON schema, or a text in llguidance's form of Lark.

    Raises:
        GrammarError: it is too large, or no JSON.
    """
    if isinstance(grammar, str):
        text = grammar
    else:
        schema = {**grammar, "x-guidance": {"whitespace_pattern": SPACE}}
        try:
            text = json.dumps({"grammars": [{"json_schema": schema}]}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the JSON schema cannot be written as JSON: {first_line(error)}") from None
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise GrammarError(f"the grammar takes more than {MOST_BYTES} bytes")
    return text


class Constraint:
    """What one reply may go on with.

    Args:
        matcher: at the beginning of its grammar.
        ends: tokens that end a reply.
    """

    def __init__(self, matcher: "LLMatcher", ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._count = 0  # tokens of the reply that the matcher has read

    def restrict(self, logits: Tensor, reply: Sequence[int], draft: Sequence[int] = ()) -> None:
        """Sets the logits of all tokens that are not allowed to −inf, in place.

        Args:
            logits: (1 + k, V) behind the reply, and behind each token of the draft.
            reply: all tokens so far. Behind the token that ends it everything is allowed.
            draft: k tokens that are allowed; see `allowed`.

        Raises:
            GrammarError: the grammar has become too complex for llguidance's limits.
        """
        if not self._ends.isdisjoint(reply[self._count :]):
            return
        self._read(reply)
        forbidden = np.empty((len(draft) + 1, logits.shape[1]), dtype=np.uint8)
        forbidden[0] = self._forbidden(logits.shape[1])
        for number, token in enumerate(draft, 1):
            self._take(token)
            forbidden[number] = self._forbidden(logits.shape[1])
        if draft:
            self._matcher.rollback(len(draft))
        mask = torch.from_numpy(forbidden).view(torch.bool).to(logits.device, non_blocking=True)
        logits.masked_fill_(mask, -torch.inf)

    def allowed(self, reply: Sequence[int], draft: Sequence[int]) -> list[int]:
        """The beginning of a draft that may follow the reply, without tokens that end it."""
        self._read(reply)
        end = next((place for place, token in enumerate(draft) if token in self._ends), len(draft))
        return list(draft[: self._matcher.validate_tokens(list(draft[:end]))])

    def rewind(self) -> None:
        """The reply will be read anew: an exception may have come while it was read."""
        self._matcher.reset()
        self._count = 0

    def _read(self, reply: Sequence[int]) -> None:
        for token in reply[self._count :]:
            self._take(token)
            self._count += 1

    def _take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._fail()

    def _forbidden(self, vocab_size: int) -> NDArray[np.uint8]:
        """(V,), 1 for each token that may not come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self._fail()
        return np.unpackbits(~bits, count=vocab_size, bitorder="little")

    def _fail(self) -> NoReturn:
        raise GrammarError(f"the grammar cannot be followed further: {_told(self._matcher)}")


@dataclass(frozen=True)
class Grammar:
    """A grammar compiled for a tokenizer; used by any number of replies.

    Attributes:
        matcher: at the beginning.
        ends: tokens that end a reply.
    """

    matcher: "LLMatcher"
    ends: frozenset[int]

    def begin(self) -> Constraint:
        """For a new reply."""
        return Constraint(self.matcher.deep_copy(), self.ends)


class Grammars:
    """Compiles grammars, and keeps the tokenizer's vocabulary and the newest of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vocabulary: tuple[Tokenizer, int, frozenset[int], LLTokenizer] | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()

    def compile(
        self,
        grammar: str | Mapping[str, Any] | None,
        tokenizer: "Tokenizer",
        vocab_size: int,
        ends: Collection[int],
    ) -> Grammar | None:
        """The grammar for a model's tokens.

        Args:
            grammar: see `grammar_text`; None for none.
            tokenizer: of the model.
            vocab_size: V of the logits; ids that the tokenizer does not know are never allowed.
            ends: tokens that end a reply.

        Raises:
            GrammarError: llguidance is not installed, or refuses the grammar, or no text follows it.
        """
        if grammar is None:
            return None
        text = grammar_text(grammar)
        with self._lock:
            vocabulary = self._for(tokenizer, vocab_size, frozenset(ends))
            compiled = self._kept.pop(text, None) or _compiled(text, vocabulary, frozenset(ends))
            self._kept[text] = compiled
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return compiled

    def _for(self, tokenizer: "Tokenizer", vocab_size: int, ends: frozenset[int]) -> "LLTokenizer":
        kept = self._vocabulary
        if kept is None or kept[0] is not tokenizer or kept[1:3] != (vocab_size, ends):
            self._kept.clear()
            self._vocabulary = kept = tokenizer, vocab_size, ends, _vocabulary(tokenizer, vocab_size, ends)
        return kept[3]


class _Vocabulary:
    """The tokens as llguidance asks for them."""

    bos_token_id = None

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(ends)
        self.tokens = [tokenizer.bytes_of(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids | ends)

    def __call__(self, text: str) -> list[int]:
        """Its ids."""
        return self._tokenizer.encode(text)


def _vocabulary(tokenizer: "Tokenizer", vocab_size: int, ends: frozenset[int]) -> "LLTokenizer":
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise GrammarError("a grammar needs llguidance: pip install llguidance, or muomni[serve]") from None
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, ends)), eos_token=sorted(ends))


def _compiled(text: str, vocabulary: "LLTokenizer", ends: frozenset[int]) -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(**_LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()  # of a schema that only refers to itself nothing follows
    if matcher.is_error():
        raise GrammarError(f"the grammar is refused: {_told(matcher)}")
    return Grammar(matcher, ends)


def _told(matcher: "LLMatcher") -> str:
    """What is wrong, in a line."""
    return " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())[:300]
