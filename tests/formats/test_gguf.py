"""GGUF files: what is written is what the reader of the `gguf` package, and llama.cpp itself, find in them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni import MuOmni
from muomni.config import OmniConfig, ThinkerConfig
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import CheckpointError, ConfigError, DataError, UserError
from muomni.formats.gguf import GgufDtype, gguf_name, write_gguf
from muomni.formats.gguf_tokenizer import gguf_vocabulary
from muomni.model.int8_layers import float_state, to_int8

gguf = pytest.importorskip("gguf")

CONFIG = ThinkerConfig(
    vocab_size=72,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
    rope_theta=5_000.0,
    rms_norm_eps=1e-5,
    initializer_range=0.2,
)


def make(**changes: Any) -> MuOmni:
    """Random weights, also in the norms, so that a norm in the wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    model = MuOmni(OmniConfig(thinker=CONFIG.replace(**changes)), generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def fields(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


# Tensors and sizes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_tensors_come_back(tmp_path: Path, tied: bool, dtype: GgufDtype) -> None:
    model = make(tie_word_embeddings=tied)
    write_gguf(model, tmp_path / "m.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    state = model.thinker.state_dict()
    assert ("lm_head.weight" in state) != tied
    assert set(found) == {gguf_name(name) for name in state}
    for name, tensor in state.items():
        got = found[gguf_name(name)].view(tensor.shape)
        if tensor.ndim == 1 or dtype == "f32":
            assert types[gguf_name(name)] == "F32" and torch.equal(got, tensor)
        elif dtype != "q8_0":
            low = torch.float16 if dtype == "f16" else torch.bfloat16
            assert types[gguf_name(name)] == dtype.upper() and torch.equal(got, tensor.to(low).float())
        else:
            assert types[gguf_name(name)] == "Q8_0"
            step = tensor.view(len(tensor), -1, 32).abs().amax(-1, keepdim=True) / 127
            # Half a step, and what 127 steps gain or lose when their size is rounded to f16.
            assert bool(((got - tensor).abs().view(len(tensor), -1, 32) <= (0.5 + 127 * 2**-11) * step).all())


def test_sizes_come_back(tmp_path: Path) -> None:
    write_gguf(make(), tmp_path / "m.gguf", name="a name")
    found = fields(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "qwen3",
        "general.name": "a name",
        "general.file_type": 0,
        "qwen3.context_length": 128,
        "qwen3.embedding_length": 64,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.rope.freq_base": 5_000.0,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "qwen3.vocab_size": 72,
        "tokenizer.ggml.model": "none",
    }
    assert {name: found[name] for name in expected} == expected


def test_names_are_those_llama_cpp_has_for_qwen3() -> None:
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, CONFIG.num_hidden_layers)
    for name in make(tie_word_embeddings=False).thinker.state_dict():
        there = name if name.startswith("lm_head") else f"model.{name}"
        assert theirs.get_name(there, try_suffixes=(".weight",)) == gguf_name(name)


def test_int8_weights_are_dequantised(tmp_path: Path) -> None:
    model = make()
    to_int8(model)
    write_gguf(model, tmp_path / "m.gguf")
    state = float_state(model, model.dtype)
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        name = next(name for name in state if name != "thinker.lm_head.weight" and gguf_name(name[8:]) == tensor.name)
        assert torch.equal(torch.tensor(tensor.data).view(state[name].shape), state[name].float()), name


# The tokenizer


def test_the_vocabulary_comes_back(tmp_path: Path, nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    assert model.tokenizer is not None
    model.export_gguf(tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == model.config.thinker.vocab_size
    assert tokens == [model.tokenizer.backend.id_to_token(i) for i in range(len(tokens))]
    assert {i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL} == model.tokenizer.special_ids
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "dbrx")
    assert found["tokenizer.ggml.eos_token_id"] == model.tokenizer.im_end_id
    assert found["tokenizer.ggml.bos_token_id"] == model.tokenizer.eos_id
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == model.tokenizer.chat_template.source
    first, second = found["tokenizer.ggml.merges"][0].split(" ")
    assert first + second in tokens


@pytest.fixture
def beginning(small_tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts a token before every text, as Llama's does."""
    values = json.loads(small_tokenizer.backend.to_str())
    begin = small_tokenizer.im_start_id
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [begin], "tokens": ["<|im_start|>"]}},
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    return Tokenizer(backend, small_tokenizer.chat_template, small_tokenizer.config)


def test_a_token_before_every_text_is_kept(beginning: Tokenizer, tmp_path: Path, nano_folder: Path) -> None:
    vocabulary = gguf_vocabulary(beginning, beginning.vocab_size, beginning.im_end_id)
    assert (vocabulary.add_bos, vocabulary.bos) == (True, beginning.im_start_id)
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    plain, turns = model.encode("The cat", raw=True), model.encode("The cat")
    model.tokenizer = beginning
    assert model.encode("The cat", raw=True) == [beginning.im_start_id, *plain]
    assert model.encode("The cat") == turns
    model.export_gguf(tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.add_bos_token"] is True
    beginning.save(tmp_path)
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("The cat").input_ids == model.encode(
        "The cat", raw=True
    )


def test_more_than_one_token_before_a_text_is_refused(beginning: Tokenizer) -> None:
    values = json.loads(beginning.backend.to_str())
    single = values["post_processor"]["single"]
    values["post_processor"]["single"] = [single[0], *single]
    twice = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))
    assert twice.begin_ids == (beginning.im_start_id,) * 2
    with pytest.raises(DataError, match="puts 2 tokens before a text"):
        gguf_vocabulary(twice, twice.vocab_size, twice.im_end_id)


def test_ids_without_an_entry_are_unused(small_tokenizer: Tokenizer) -> None:
    size = small_tokenizer.vocab_size
    made = gguf_vocabulary(small_tokenizer, size + 2, 0)
    assert made.kinds[size:] == ["unused", "unused"] and len(set(made.tokens)) == size + 2
    with pytest.raises(DataError, match="vocabulary is 5"):
        gguf_vocabulary(small_tokenizer, 5, 0)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "pre"),
    [(LLAMA3, "dbrx"), (LLAMA3.replace("{1,3}", ""), "qwen2"), (r"\s+", None)],
    ids=["llama3", "qwen2", "unknown"],
)
def test_rules_of_other_tokenizers(small_tokenizer: Tokenizer, pattern: str, pre: str | None) -> None:
    import tokenizers
    from tokenizers import Regex, pre_tokenizers

    backend = tokenizers.Tokenizer.from_str(small_tokenizer.backend.to_str())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    other = Tokenizer(backend, small_tokenizer.chat_template, small_tokenizer.config)
    if pre is None:
        with pytest.raises(DataError, match="a rule that llama.cpp does not have"):
            gguf_vocabulary(other, 400, 0)
        return
    assert gguf_vocabulary(other, 400, 0).pre == pre
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert gguf_vocabulary(other, 400, 0).pre == "gpt-2"


# Refusing


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = make(hidden_size=40)
    with pytest.raises(UserError, match=r"q8_0 keeps weights in blocks of 32, and token_embd\.weight has rows of 40"):
        model.export_gguf(tmp_path / "m.gguf", "q8_0")
    with torch.no_grad():
        model.thinker.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight has a weight beyond f16's range"):
        model.export_gguf(tmp_path / "m.gguf", "f16")
    with pytest.raises(ConfigError, match="GGUF dtype 'q4': there are f32, f16, bf16, q8_0"):
        model.export_gguf(tmp_path / "m.gguf", "q4")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.export_gguf(tmp_path / "file" / "m.gguf")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.formats.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'muomni\[gguf\]'"):
        make().export_gguf(tmp_path / "m.gguf")


# llama.cpp


def llama(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    kind = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, n_threads_batch=1, type_k=kind, type_v=kind, logits_all=True, verbose=False
    )


def theirs(model: Any, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits of the prompt."""
    model.reset()
    model.eval(ids)
    logits = torch.tensor(model.scores[: len(ids)]).clone()
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(tokens[-1:])
    return tokens, logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_llama_cpp_continues_alike(tmp_path: Path, tied: bool, int8: bool, nano_folder: Path) -> None:
    tokenizer = Tokenizer.load(nano_folder)
    model = make(tie_word_embeddings=tied, vocab_size=tokenizer.vocab_size + 3)
    model.tokenizer = tokenizer
    if int8:
        model.quantize()
    model.export_gguf(tmp_path / "m.gguf")
    if int8:
        from muomni.accel.int8 import dequantize_model

        dequantize_model(model)
    other = llama(tmp_path / "m.gguf")
    ids = tokenizer.encode("The cat sat on the mat, and then the dog ate the bone.")
    ours = model.generate(torch.tensor([ids]), temperature=0, max_new_tokens=40, ignore_eos=True)[0].tolist()
    tokens, logits = theirs(other, ids, 40)
    assert tokens == ours
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)


TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FF), st.sampled_from(" \n\t'0123éßЖ日🙂"))
)


def test_llama_cpp_tokenises_alike(tmp_path: Path, nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    tokenizer = model.tokenizer
    assert tokenizer is not None
    model.export_gguf(tmp_path / "m.gguf")
    other = llama(tmp_path / "m.gguf")

    @settings(max_examples=200)
    @given(TEXT.filter(lambda text: "\0" not in text))
    def alike(text: str) -> None:
        assert other.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)

    alike()
    for text in ("It's 12345 o'clock!\n\n  Hello   there...", "DON'T\r\n\r\n x", "a1b2 cafe\u0301", " \n \n x"):
        assert other.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    assert other.tokenize(b"<|im_end|>", add_bos=False, special=True) == [tokenizer.im_end_id]
    assert (other.token_eos(), other.metadata["tokenizer.ggml.pre"]) == (tokenizer.im_end_id, "dbrx")
