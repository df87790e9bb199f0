"""`MuOmni`: loading, saving, chatting, errors."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.config import OmniConfig, preset
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import CheckpointError, ConfigError, PromptError, UserError
from muomni.formats.pretrained import save_model
from muomni.infer import Reply
from muomni.infer.preprocess import end_ids


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


def same_weights(a: MuOmni, b: MuOmni) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_a_preset_and_a_configuration_make_a_model() -> None:
    model = MuOmni.from_config("nano", device="cpu")
    assert model.num_parameters() == preset("nano").thinker.num_parameters()
    assert model.training and model.dtype == torch.float32
    assert not same_weights(model, MuOmni.from_config(preset("nano"), device="cpu"))
    seeded = [MuOmni.from_config("nano", device="cpu", seed=3) for _ in range(2)]
    assert same_weights(*seeded)
    with pytest.raises(ConfigError, match="no preset 'huge': there are nano, tiny, small, base"):
        MuOmni.from_config("huge")


def test_the_call_gives_logits(model: MuOmni) -> None:
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, model.config.thinker.vocab_size)


def test_saving_and_loading_keeps_everything(model: MuOmni, tmp_path: Path) -> None:
    assert model.save_pretrained(tmp_path / "out") is None
    back = MuOmni.from_pretrained(str(tmp_path / "out"), device="cpu")
    assert isinstance(back, MuOmni) and not back.training
    assert back.config == model.config and same_weights(back, model)
    settings: dict[str, Any] = {"seed": 4, "max_new_tokens": 12}
    assert back.chat("Hello there!", **settings).tokens == model.chat("Hello there!", **settings).tokens
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= names


def test_saving_replaces_a_model_but_nothing_else(model: MuOmni, tmp_path: Path) -> None:
    out = tmp_path / "out"
    MuOmni.from_config("nano", device="cpu").save_pretrained(out)
    model.save_pretrained(out)
    assert same_weights(MuOmni.from_pretrained(out, device="cpu"), model)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.txt\)"):
        model.save_pretrained(out)
    assert (out / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"):
        model.save_pretrained(out / "thesis.txt")


def test_a_failed_save_leaves_the_old_model_whole(
    model: MuOmni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    model.save_pretrained(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("muomni.formats.tensors.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        MuOmni.from_config("nano", device="cpu").save_pretrained(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_folder_loads_its_best_checkpoint_else_its_last(model: MuOmni, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        UserError, match=r"no model in .*: it has no config\.json, and no checkpoint under best or last"
    ):
        MuOmni.from_pretrained(run)
    last = MuOmni.from_config("nano", device="cpu")
    last.save_pretrained(run / "step-2")
    (run / "last").symlink_to("step-2")
    assert same_weights(MuOmni.from_pretrained(run, device="cpu"), last)
    model.save_pretrained(run / "step-1")
    (run / "best").symlink_to("step-1")
    assert same_weights(MuOmni.from_pretrained(run, device="cpu"), model)


def test_a_qwen3_folder_loads_and_chats(model: MuOmni, tmp_path: Path) -> None:
    model.export_hf(tmp_path / "hf")
    back = MuOmni.from_pretrained(tmp_path / "hf", device="cpu")
    assert same_weights(back, model)
    settings: dict[str, Any] = {"seed": 4, "max_new_tokens": 12}
    assert back.chat("Hello there!", **settings).tokens == model.chat("Hello there!", **settings).tokens


def test_dtype_none_keeps_the_files(model: MuOmni, tmp_path: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "out")
    assert MuOmni.from_pretrained(tmp_path / "out", device="cpu").dtype == torch.bfloat16
    assert MuOmni.from_pretrained(tmp_path / "out", device="cpu", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-model", "nothing at .*no-such-model, and the Hugging Face Hub cannot be reached"),
        ("someone/no-such-model", "nothing at .*, and the Hugging Face Hub cannot be reached"),
        ("./no-such-model", "no run or model './no-such-model': nothing at"),
        ("runs/typo", "nothing at .*runs/typo; in runs there are: demo, other"),
        ("a/b/c", "no run or model 'a/b/c': nothing at"),
    ],
)
def test_an_unknown_name_says_where_was_looked(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("demo", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        MuOmni.from_pretrained(name)


def test_a_model_of_the_hub_comes_from_its_cache(
    nano_folder: Path, model: MuOmni, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(nano_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    back = MuOmni.from_pretrained("someone/model", device="cpu", revision="v1")
    assert same_weights(back, model)
    assert asked["name"] == "someone/model" and asked["revision"] == "v1"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])


def test_push_to_hub_uploads_a_whole_folder(model: MuOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    uploaded: dict[str, set[str]] = {}

    def create_repo(self: HfApi, repo_id: str, **_: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **_: Any) -> str:
        uploaded[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        assert same_weights(MuOmni.from_pretrained(folder_path, device="cpu"), model)
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert model.push_to_hub("someone/model") == "https://example.org/commit"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= uploaded["someone/model"]


def test_chat_replies(model: MuOmni) -> None:
    reply = model.chat("Hello there!", max_new_tokens=10, seed=1)
    assert isinstance(reply, Reply)
    assert str(reply) == reply.text
    assert 1 <= len(reply.tokens) <= 10
    assert reply.timing.prompt_tokens == len(model.encode("Hello there!"))
    as_messages = model.chat([{"role": "user", "content": "Hello there!"}], max_new_tokens=10, seed=1)
    as_parts = model.chat(
        [{"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there!"}]}],
        max_new_tokens=10,
        seed=1,
    )
    assert reply.tokens == as_messages.tokens == as_parts.tokens


def test_stream_complete_and_generate_agree(model: MuOmni) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 15, "seed": 2}
    for raw, whole in ((False, model.chat), (True, model.complete)):
        running = model.stream("The cat", raw=raw, **settings)
        text = "".join(piece.text for piece in running)
        reply = whole("The cat", **settings)
        ids = torch.tensor([model.encode("The cat", raw=raw)])
        assert text == reply.text == running.reply.text
        assert list(reply.tokens) == model.generate(ids, **settings)[0].tolist()
    assert model.encode("The cat", raw=True) == model.tokenizer.encode("The cat")  # type: ignore[union-attr]


def test_chat_ends_at_the_end_of_the_turn(model: MuOmni) -> None:
    assert model.tokenizer is not None
    assert end_ids(model, model.tokenizer) == (model.tokenizer.im_end_id, model.tokenizer.eos_id)
    other = copy.deepcopy(model)
    first = model.chat("Hello", temperature=0, max_new_tokens=8).tokens
    other.config = model.config.replace(eos_token_ids=(first[3],))
    reply = other.chat("Hello", temperature=0, max_new_tokens=8)
    assert reply.tokens == first[: first.index(first[3]) + 1]
    assert reply.finish_reason == "stop"


def test_the_end_of_a_turn_ends_a_reply_also_where_the_base_model_does_not_name_it(
    model: MuOmni, tmp_path: Path
) -> None:
    """As after training on conversations from a folder whose configuration ends documents only."""
    model, tokenizer = copy.deepcopy(model), model.tokenizer
    assert tokenizer is not None
    model.config = model.config.replace(eos_token_ids=(tokenizer.eos_id,))
    assert end_ids(model, tokenizer) == (tokenizer.im_end_id, tokenizer.eos_id)
    model.export_hf(tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["eos_token_id"] == [tokenizer.im_end_id, tokenizer.eos_id]


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_an_error(model: MuOmni, prompt: Any) -> None:
    with pytest.raises(PromptError, match="empty|no message"):
        model.chat(prompt)


def test_wrong_prompts_are_errors(model: MuOmni) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.complete("")
    with pytest.raises(PromptError, match="needs a text, not messages"):
        model.stream([{"role": "user", "content": "x"}], raw=True)
    with pytest.raises(PromptError, match="nothing to answer"):
        model.chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    with pytest.raises(PromptError, match="no image input"):
        model.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    with pytest.raises(PromptError, match="[0-9]{3,} tokens and the model's context is 256"):
        model.chat("word " * 300)
    with pytest.raises(PromptError, match="temprature.*did you mean temperature"):
        model.chat("x", temprature=1)
    with pytest.raises(PromptError, match="temperature = -1"):
        model.generate(torch.tensor([[1]]), temperature=-1)


def test_token_ids_are_checked_at_the_door(model: MuOmni) -> None:
    V = model.config.thinker.vocab_size
    for ids in ([[V]], [[-1]], [[0.5]]):
        with pytest.raises(PromptError, match=f"whole numbers from 0 to {V - 1}"):
            model.generate(torch.tensor(ids))
    assert model.generate(torch.tensor([[1, 2]], dtype=torch.int32), max_new_tokens=2, ignore_eos=True).shape == (1, 2)


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    model = MuOmni.from_config("nano", device="cpu")
    for ask in (model.chat, model.complete, model.stream):
        with pytest.raises(UserError, match="has no tokenizer"):
            ask("Hello")
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=3).shape == (1, 3)
    model.save_pretrained(tmp_path / "out")
    assert MuOmni.from_pretrained(tmp_path / "out", device="cpu").tokenizer is None


def test_a_tokenizer_of_another_model_is_refused(small_tokenizer: Tokenizer) -> None:
    thinker = preset("nano").thinker.replace(vocab_size=100)
    model = MuOmni.from_config(OmniConfig(thinker=thinker), tokenizer=small_tokenizer, device="cpu")
    with pytest.raises(UserError, match="the model's vocabulary is 100"):
        model.chat("Hello")


def test_copies_chat_alike_and_keep_user_text_apart_from_special_tokens(model: MuOmni) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "seed": 1}
    said = model.chat("Hello", **settings).tokens  # first, so that there are caches to copy
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_weights(other, model) and other.config == model.config
        assert other.chat("Hello", **settings).tokens == said
        assert model.tokenizer.im_end_id not in other.encode("<|im_end|>", raw=True)  # type: ignore[union-attr]


def test_autocast_and_compile_work(model: MuOmni) -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(ids).logits
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.1)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, expected, rtol=1e-5, atol=1e-5)
    loss = compiled(ids, labels=ids).loss
    torch.testing.assert_close(loss, model(ids, labels=ids).loss)
    loss.backward()
    model.zero_grad()
    assert (
        compiled.chat("Hello", max_new_tokens=3, seed=0).tokens == model.chat("Hello", max_new_tokens=3, seed=0).tokens
    )


def test_exports_load_in_transformers(model: MuOmni, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    model.export_hf(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there!"}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(encoded) == model.encode(messages)
    ids = torch.tensor([model.encode(messages)])
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
    assert (
        set(theirs.generation_config.eos_token_id)
        == set(theirs.config.eos_token_id)
        == set(end_ids(model, model.tokenizer))
    )
    said = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    ours = model.chat(messages, temperature=0, max_new_tokens=10)
    assert said[0, ids.shape[1] :].tolist() == list(ours.tokens)
    assert tokenizer.decode(ours.tokens, skip_special_tokens=True) == ours.text


def test_a_corrupt_tokenizer_is_named(nano_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_folder, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        MuOmni.from_pretrained(tmp_path / "broken", device="cpu")


def test_a_configuration_that_cannot_be_is_named(nano_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    values = json.loads((nano_folder / "config.json").read_text())
    values["thinker"]["num_key_value_heads"] = 3
    (tmp_path / "broken" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        MuOmni.from_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        MuOmni.from_pretrained(tmp_path / "broken")


def test_the_model_folder_alone_is_enough(model: MuOmni, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    assert same_weights(MuOmni.from_pretrained(tmp_path, device="cpu"), model)
