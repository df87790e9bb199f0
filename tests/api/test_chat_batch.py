"""`MuOmni.chat_batch`, and that all ways to chat agree."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.errors import PromptError
from muomni.infer import Reply, SamplingParams, generate
from muomni.infer.preprocess import end_ids


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


PROMPTS: list[Any] = [
    "Hello there!",
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is this?"}],
    ["The cat ", {"type": "text", "text": "sat on "}, "the mat."],
    "The dog ate the bone, and then the dog slept. " * 4,
    [{"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there!"}]}],
] * 2


def said(replies: list[Reply]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(reply.text, reply.tokens, reply.finish_reason) for reply in replies]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0, "max_new_tokens": 20},
        {"temperature": 0, "max_new_tokens": 30, "stop": ["e", "th"], "repetition_penalty": 1.2},
        {"temperature": 0, "max_new_tokens": 60, "ignore_eos": True, "speculate": True},
        {"seed": 5, "max_new_tokens": 12, "top_p": 0.9},
        {"seed": 5, "max_new_tokens": 12, "top_k": 0, "min_p": 0.01, "ignore_eos": True},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_batch_says_what_chat_says(model: MuOmni, settings: dict[str, Any], batch_size: int) -> None:
    alone = [model.chat(prompt, **settings) for prompt in PROMPTS]
    together = model.chat_batch(PROMPTS, batch_size=batch_size, **settings)
    assert said(together) == said(alone)
    assert all(reply.timing.new_tokens == len(reply.tokens) for reply in together)


def test_each_prompt_may_have_settings_of_its_own(model: MuOmni) -> None:
    sampling: list[dict[str, Any]] = [
        {"seed": i, "temperature": i % 3 / 2, "top_k": 5 * (i % 2), "repetition_penalty": 1 + (i % 4 == 0)}
        for i in range(len(PROMPTS))
    ]
    common: dict[str, Any] = {"max_new_tokens": 10, "seed": 99}
    alone = [model.chat(p, **{**common, **s}) for p, s in zip(PROMPTS, sampling, strict=True)]
    assert said(model.chat_batch(PROMPTS, sampling=sampling, **common)) == said(alone)


def test_raw_prompts_are_continued(model: MuOmni) -> None:
    texts = ["The cat", "Hello there! What"]
    alone = [model.complete(text, seed=1, max_new_tokens=8) for text in texts]
    assert said(model.chat_batch(texts, raw=True, seed=1, max_new_tokens=8)) == said(alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_replies_do_not_depend_on_the_batch(nano_folder: Path, dtype: torch.dtype) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu", dtype=dtype)
    settings: dict[str, Any] = {"max_new_tokens": 30, "seed": 3, "ignore_eos": True, "batch_invariant": True}
    alone = [model.chat(prompt, **settings) for prompt in PROMPTS]
    for batch_size in (2, 32):
        assert said(model.chat_batch(PROMPTS, batch_size=batch_size, **settings)) == said(alone)
    assert said(model.chat_batch(PROMPTS[::-1], **settings)) == said(alone)[::-1]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "the list of prompts is empty"),
        ("Hello", {}, "prompts must be a list, not str; chat answers a single one"),
        (["Hello", ""], {}, "prompt 2 of 2: the prompt is empty"),
        (["Hello", "word " * 300], {}, "prompt 2 of 2: the prompt has [0-9]+ tokens and the model's context is 256"),
        (["Hello"], {"temperature": -1}, "prompt 1 of 1: temperature = -1: must be 0"),
        (["Hello"], {"temprature": 1}, "did you mean temperature"),
        (["Hello"], {"batch_size": 0}, "batch_size = 0: must be at least 1"),
        (["Hello", "x"], {"sampling": [{}]}, "sampling has 1 entries for 2 prompts"),
        (["Hello", "x"], {"sampling": [{}, {"top_p": 2}]}, "prompt 2 of 2: top_p = 2"),
        (["Hello", ["What is this?", b"GIF89a"]], {}, "prompt 2 of 2: .*part 2: this model has no image input"),
        ([["Listen:", (torch.zeros(9), 16000)]], {}, "prompt 1 of 1: .*part 2: this model has no audio input"),
        ([[{"type": "image_url", "image_url": {"url": "x"}}]], {}, "this model has no image input"),
        ([["Hello", 3]], {}, "prompt 1 of 1: .*part 2 must be"),
        ([[]], {}, "prompt 1 of 1: .*holds no message"),
    ],
)
def test_mistakes_name_the_prompt_and_the_model_answers_afterwards(
    model: MuOmni, prompts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        model.chat_batch(prompts, **options)
    assert len(model.chat_batch(["Hello"], max_new_tokens=3)[0].tokens) >= 1


def test_a_conversation_is_read_from_where_it_goes_on(model: MuOmni) -> None:
    turns = [{"role": "user", "content": "What is this? The cat sat on the mat. Hello there!"}]
    first = model.chat(turns, temperature=0, max_new_tokens=20)
    turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
    second = model.chat(turns, temperature=0, max_new_tokens=20)
    assert said([second]) == said([copy.deepcopy(model).chat(turns, temperature=0, max_new_tokens=20)])
    engine = model.runtime.engine(model, 1, 1)
    assert engine._scheduler.prefix.tokens[0] or any(engine._scheduler.prefix.tokens)


def test_weights_that_change_are_seen(model: MuOmni) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_new_tokens": 15, "ignore_eos": True}
    before = model.chat("Hello there! The cat sat on the mat.", **settings)
    engine = model.runtime.engine(model, 1, 1)
    with torch.no_grad():
        model.thinker.layers[0].mlp.down_proj.weight.mul_(-3)
    fresh = MuOmni(model.config, tokenizer=model.tokenizer)
    fresh.load_state_dict(model.state_dict())
    after = model.chat("Hello there! The cat sat on the mat.", **settings)
    assert after.tokens == fresh.eval().chat("Hello there! The cat sat on the mat.", **settings).tokens
    assert after.tokens != before.tokens
    assert model.runtime.engine(model, 1, 1) is not engine
    assert model.runtime.engine(model, 1, 1) is model.runtime.engine(model, 1, 200)
    assert model.to(torch.float64).chat("Hello", **settings).tokens


def test_copies_have_engines_of_their_own(model: MuOmni) -> None:
    stream = model.stream("Hello", max_new_tokens=9, seed=1, ignore_eos=True)
    next(stream)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.runtime.engine(other, 1, 1) is not model.runtime.engine(model, 1, 1)
        assert said([other.chat("Hello", max_new_tokens=9, seed=1, ignore_eos=True)]) == said(
            [model.chat("Hello", max_new_tokens=9, seed=1, ignore_eos=True)]
        )
    assert stream.finish().tokens == model.chat("Hello", max_new_tokens=9, seed=1, ignore_eos=True).tokens


def test_open_streams_do_not_keep_others_from_being_answered(model: MuOmni) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    expected = [model.chat("The cat", seed=i, **settings).tokens for i in range(9)]
    streams = [model.stream("The cat", seed=i, **settings) for i in range(9)]
    for stream in streams:
        next(stream)
    assert model.chat("The cat", seed=3, **settings).tokens == expected[3]
    assert [stream.finish().tokens for stream in reversed(streams)] == expected[::-1]


def test_a_bar_is_shown_where_it_is_asked_for(model: MuOmni, capsys: pytest.CaptureFixture[str]) -> None:
    model.chat_batch(["Hello"] * 3, max_new_tokens=2)
    assert capsys.readouterr() == ("", "")
    model.chat_batch(["Hello"] * 3, max_new_tokens=2, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "replies" in err


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 2}, {"temperature": 0, "ignore_eos": True}])
def test_generate_is_the_plain_loop_with_and_without_the_cache(model: MuOmni, settings: dict[str, Any]) -> None:
    ids = torch.randint(model.config.thinker.vocab_size, (5, 20), generator=torch.Generator().manual_seed(0))
    expected = generate(
        model, ids, SamplingParams(max_new_tokens=25, **settings), end_ids=end_ids(model, model.tokenizer)
    )
    assert torch.equal(model.generate(ids, max_new_tokens=25, **settings), expected)
    assert torch.equal(model.generate(ids, max_new_tokens=25, use_cache=False, **settings), expected)
    with pytest.raises(PromptError, match="stop: token ids hold no text"):
        model.generate(ids, stop="x")
