"""The tokenizer: nothing is lost, text stays text, and Hugging Face reads the same from its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import SPECIAL, Tokenizer
from muomni.errors import DataError, PromptError
from tests.data.helpers import STORIES


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "  two spaces", "é😀\u200d👩\u0301", "\x00\x7f", "a\r\nb\rc", "\ufeff"]
)
def test_awkward_texts_come_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    singles = {tokenizer.bytes_of(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= singles


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"U\+D83D at character 2"):
        tokenizer.encode("ab\ud83d")


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = "".join(vars(SPECIAL).values())
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "a" + text]) == [ids, tokenizer.encode("a" + text)]


def test_a_loaded_tokenizer_keeps_text_as_text(folder: Path, tokenizer: Tokenizer) -> None:
    assert Tokenizer.load(folder).encode("<|im_end|>") == tokenizer.encode("<|im_end|>")


def test_splits_numbers_by_three_and_keeps_spaces_with_words(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str(" cat 12345, don't\n\n  x")
    assert [piece for piece, _ in pieces] == ["Ġcat", "Ġ", "123", "45", ",", "Ġdon", "'t", "ĊĊ", "Ġ", "Ġx"]


def test_names_and_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() <= 500
    assert tokenizer.id_of("<|image|>") in tokenizer.special_ids
    assert tokenizer.end_ids == (tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>"))
    assert len(tokenizer.special_ids) == len(vars(SPECIAL))
    with pytest.raises(DataError, match="no token <|nothing|>"):
        tokenizer.id_of("<|nothing|>")


def test_training_twice_gives_the_same(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(iter(STORIES * 3), 500).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(("texts", "size", "message"), [([], 500, "no text"), (["a"], 260, "too small")])
def test_training_refuses(texts: list[str], size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tokenizer.train(texts, size)


def test_byte_lengths_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    text = "The dog é😀 ran\n"
    assert lengths.shape == (tokenizer.vocab_size,)
    assert int(lengths[tokenizer.encode(text)].sum()) == len(text.encode())
    assert int(lengths[[*tokenizer.special_ids]].sum()) == 0


@given(st.lists(st.integers(0, 520), max_size=40), st.booleans(), st.randoms())
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, ids: list[int], skip: bool, random: Any) -> None:
    stream = tokenizer.stream(skip)
    pieces, rest = [], list(ids)
    while rest:
        count = random.randint(1, len(rest))
        pieces.append(stream.push(rest[:count]))
        rest = rest[count:]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip)


def test_a_stream_waits_for_whole_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀!")
    stream = tokenizer.stream()
    pushed = [stream.push([i]) for i in ids]
    assert len(ids) == 5
    assert pushed == ["", "", "", "😀", "!"]
    stream.push(ids[:2])
    assert stream.finish() == "\ufffd"


def test_saving_and_loading_changes_nothing(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.fingerprint == tokenizer.fingerprint
    loaded.save(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@settings(max_examples=50)
@given(text=st.text(max_size=60))
def test_hugging_face_encodes_alike(hugging_face: Any, tokenizer: Tokenizer, text: str) -> None:
    assert hugging_face(text)["input_ids"] == tokenizer.encode(text)
    assert hugging_face.decode(tokenizer.encode(text)) == text


def test_hugging_face_knows_the_special_tokens(hugging_face: Any, tokenizer: Tokenizer) -> None:
    assert hugging_face.eos_token_id == tokenizer.eos_id
    assert hugging_face.pad_token_id == tokenizer.pad_id
    assert set(hugging_face.all_special_ids) == tokenizer.special_ids
    assert len(hugging_face) == tokenizer.vocab_size


def test_in_a_qwen3_folder_hugging_face_still_uses_our_splitting(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    text = "It ran 12345 times\n\n  and don't"
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert found == Tokenizer.load(folder).encode(text)


def test_a_folder_with_few_special_tokens_loads(folder: Path, tmp_path: Path) -> None:
    """As in Qwen3's own folder: no image or audio tokens under our names, and its template in the configuration."""
    content = json.loads((folder / "tokenizer.json").read_text())
    kept = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in kept]
    dropped = set(vars(SPECIAL).values()) - set(kept)
    content["model"]["vocab"] = {k: v for k, v in content["model"]["vocab"].items() if k not in dropped}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = {"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ eos_token }}{{ messages | length }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.pad_id == loaded.eos_id
    assert loaded.chat_template.render([]) == "<|im_end|>0"
    with pytest.raises(DataError, match=r"no token <\|image\|>"):
        loaded.id_of(SPECIAL.image)


def _without_turns(content: Any) -> None:
    content["added_tokens"] = content["added_tokens"][:2]
    content["model"]["vocab"] = {k: v for k, v in content["model"]["vocab"].items() if not k.startswith("<|im")}


def _word_pieces(content: Any) -> None:
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [(_without_turns, "lacks the special tokens <|im_start|>, <|im_end|>"), (_word_pieces, "not a byte-level BPE")],
)
def test_unsuitable_tokenizers_are_refused(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tokenizer\.json") as error:
        Tokenizer.load(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{", "not a tokenizer that can be read"),
        ("tokenizer.json", b"\xff\xfe", "not UTF-8 text"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
    ],
)
def test_broken_folders_are_refused(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_a_broken_configuration_of_a_tokenizer_is_told_or_passed_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for config in ({"bos_token": {"a": 1}, "eos_token": 7}, {"chat_template": [None, {"name": "default"}, 3]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert Tokenizer.load(tmp_path).vocab_size == tokenizer.vocab_size
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        Tokenizer.load(tmp_path)
