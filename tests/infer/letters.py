"""A vocabulary of 30 tokens, so that models of a few numbers can follow a grammar."""

from muomni.infer.structured import Grammar, Grammars

TOKENS = [*'abcde0123456789,[]{}":-. x', "ab", "12", '",', "<end>"]
END = 29


class Letters:
    """What of a tokenizer a grammar needs."""

    special_ids = frozenset({END})

    def bytes_of(self, token: int) -> bytes:
        return TOKENS[token].encode()

    def encode(self, text: str) -> list[int]:
        return [TOKENS.index(letter) for letter in text]


def compiled(grammar: str | dict[str, object]) -> Grammar:
    made = Grammars().compile(grammar, Letters(), len(TOKENS), {END})  # type: ignore[arg-type]
    assert made is not None
    return made


def text_of(tokens: list[int]) -> str:
    """The text of a reply, without its end."""
    return "".join(TOKENS[token] for token in tokens if token != END)
