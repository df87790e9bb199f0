"""The tokenizer: a byte-level BPE, so every text has an encoding and gets back unchanged.

It wraps Hugging Face's `tokenizers` (Rust) and adds what a chat model needs around it: user text that
can never become a special token, text that streams in whole characters, and a folder that
`transformers.AutoTokenizer` reads.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from muomni.data.text.chat_template import CHATML, ChatTemplate
from muomni.data.text.special_tokens import SPECIAL
from muomni.errors import DataError, PromptError

if TYPE_CHECKING:
    from torch import Tensor

# How text falls into the pieces that merges stay within: English contractions; a word with the one
# character before it, usually its space; numbers by up to three digits; punctuation with the newlines
# after it; newlines; spaces, of which the last stays with the next word. It cuts where llama.cpp's
# `llama-bpe` does, so a GGUF export needs no pre-tokeniser of its own there.
SPLIT_PATTERN = "|".join(  # noqa: FLY002  # one rule a line
    (
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


_NEEDED = (SPECIAL.end_of_text, SPECIAL.im_start, SPECIAL.im_end)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to ids and back.

    Attributes:
        backend: the Rust tokenizer.
        chat_template: how a conversation becomes text.
        config: `tokenizer_config.json`.
    """

    backend: tokenizers.Tokenizer
    chat_template: ChatTemplate = field(default_factory=ChatTemplate)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Text is data: with this, "<|im_end|>" inside a text is seven letters and some punctuation.
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled backend has forgotten what `__post_init__` sets: build anew.
        return type(self), (self.backend, self.chat_template, dict(self.config))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns the merges from `texts`, which are read once.

        Args:
            texts: what it learns from.
            vocab_size: entries, the special tokens and the 256 bytes included. A small corpus may not
                have as many pairs to merge; then there are fewer entries.

        Raises:
            DataError: there is no text, or `vocab_size` leaves no room for a merge.
        """
        special = astuple(SPECIAL)
        if vocab_size <= 256 + len(special):
            least = 256 + len(special)
            raise DataError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens take {least}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        counted = _Counted(texts)
        backend.train_from_iterator(counted, trainer=trainer)
        if not counted.characters:
            raise DataError("the tokenizer was given no text to learn from")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL.end_of_text,
            "pad_token": SPECIAL.pad,
            "additional_special_tokens": [name for name in special if name not in (SPECIAL.end_of_text, SPECIAL.pad)],
            "clean_up_tokenization_spaces": False,
        }
        return cls(backend, _template(CHATML, config), config)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a folder written by `save` or by Hugging Face, with its own chat template if it has one.

        Raises:
            DataError: there is no `tokenizer.json`, it does not parse, or it is no byte-level BPE with
                the special tokens of documents and turns.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DataError(f"{folder}: has no tokenizer: tokenizer.json is missing")
        text = _read_text(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        # The Rust side raises plain Exception for a file it cannot read.
        except Exception as error:  # noqa: BLE001
            raise DataError(f"{path}: is not a tokenizer that can be read: {error}") from None
        if not (isinstance(backend.model, models.BPE) and "ByteLevel" in repr(backend.decoder)):
            raise DataError(f"{path}: is not a byte-level BPE; only those can be used (as in Qwen3, GPT-2, Llama 3)")
        missing = [name for name in _NEEDED if backend.token_to_id(name) is None]
        if missing:
            raise DataError(f"{path}: lacks the special tokens {', '.join(missing)}")
        config_path = folder / "tokenizer_config.json"
        config = _read_json(config_path) if config_path.is_file() else {}
        return cls(backend, _template(_template_source(folder, config), config), config)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, its Hugging Face configuration and the chat template into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        named = {key: config[key] for key in ("bos_token", "eos_token", "pad_token") if config.get(key)}
        more = config.get("additional_special_tokens")
        files = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": _dump(config),
            "special_tokens_map.json": _dump(named | ({"additional_special_tokens": more} if more else {})),
            "chat_template.jinja": self.chat_template.source,
        }
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, in which names of special tokens are plain text.

        Raises:
            PromptError: the text holds half of a surrogate pair, which is no character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, computed on all cores; see `encode`."""
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            _refuse_surrogates(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids without an entry nothing."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> "Detokenizer":
        """Turns ids into text as they come."""
        return Detokenizer(self, skip_special)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes, often part of a character, that a token stands for; empty when it has no entry."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._bytes_of(token)
        return known

    def _bytes_of(self, token: int) -> bytes:
        name = self.backend.id_to_token(token)
        if name is None:
            return b""
        if token in self._added or any(character not in _BYTES for character in name):
            return name.encode()  # an entry outside the byte alphabet stands for itself, as in `tokenizers`
        return bytes(_BYTES[character] for character in name)

    def byte_lengths(self) -> "Tensor":
        """(vocab_size,) int64: the bytes of text behind each token, 0 for special ones."""
        import torch

        special = self.special_ids
        return torch.tensor([0 if i in special else len(self.bytes_of(i)) for i in range(self.vocab_size)])

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return max(self.backend.get_vocab().values()) + 1

    def id_of(self, token: str) -> int:
        """The id of an entry by its name.

        Raises:
            DataError: there is no such entry.
        """
        number = self.backend.token_to_id(token)
        if number is None:
            raise DataError(f"this tokenizer has no token {token}")
        return number

    @cached_property
    def eos_id(self) -> int:
        """`<|endoftext|>`, the end of a document."""
        return self.id_of(SPECIAL.end_of_text)

    @cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """What `tokenizer.json` puts before a text, such as a `<s>`; empty for most. Turns of a chat never get it."""
        plain, whole = (self.backend.encode("a", add_special_tokens=more).ids for more in (False, True))
        starts = range(len(whole) - len(plain) + 1)
        return tuple(whole[: next(n for n in starts if whole[n : n + len(plain)] == plain)])

    @cached_property
    def im_start_id(self) -> int:
        """`<|im_start|>`, the beginning of a turn."""
        return self.id_of(SPECIAL.im_start)

    @cached_property
    def im_end_id(self) -> int:
        """`<|im_end|>`, the end of a turn."""
        return self.id_of(SPECIAL.im_end)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the end of a turn and the end of a document."""
        return (self.im_end_id, self.eos_id)

    @cached_property
    def pad_id(self) -> int:
        """`<|pad|>`, or `<|endoftext|>` in a tokenizer without one."""
        number = self.backend.token_to_id(SPECIAL.pad)
        return self.eos_id if number is None else number

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(i for i, token in self._added.items() if token.special)

    @cached_property
    def special_pattern(self) -> "re.Pattern[str]":
        """Matches the name of a special token, the longest where several fit."""
        names = sorted((self._added[i].content for i in self.special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides how a document is encoded, the chat template included."""
        content = self.backend.to_str() + "\0" + self.chat_template.source
        return hashlib.sha256(content.encode()).hexdigest()

    def same_tokens(self, other: "Tokenizer") -> bool:
        """Whether every id means the same to both; their chat templates may differ."""
        return self is other or self.vocabulary_hash == other.vocabulary_hash

    @cached_property
    def vocabulary_hash(self) -> str:
        """A hash of all entries and their ids."""
        return hashlib.sha256(repr(sorted(self.backend.get_vocab().items())).encode()).hexdigest()

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """`bytes_of` what it was asked for."""
        return {}

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return self.backend.get_added_tokens_decoder()


class Detokenizer:
    """Text from ids that come piece by piece; a character whose bytes are still coming waits."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The whole characters that `ids` complete."""
        bytes_of, skipped = self._tokenizer.bytes_of, self._skipped
        return self._decoder.decode(b"".join([bytes_of(int(i)) for i in ids if i not in skipped]))

    @property
    def waiting(self) -> bool:
        """Whether a character is still short of bytes."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never got all its bytes, else nothing."""
        return self._decoder.decode(b"", final=True)


class _Counted:
    """Passes texts on and counts their characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.characters = 0
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield text


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 characters stand for themselves, every other byte for the next character from
    U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds half of a surrogate pair (U+{ord(text[error.start]):04X} at character "
                f"{error.start}), which is no character"
            ) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a JSON object")
    return value


def _template_source(folder: Path, config: Mapping[str, Any]) -> str:
    """The folder's chat template, from wherever Hugging Face keeps it; ours when it has none."""
    if (folder / "chat_template.jinja").is_file():
        return _read_text(folder / "chat_template.jinja")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        return CHATML
    return template


def _template(source: str, config: Mapping[str, Any]) -> ChatTemplate:
    """The template with the special tokens' names that it may write."""
    names = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    return ChatTemplate(source, names)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
