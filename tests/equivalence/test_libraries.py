"""PEFT, accelerate and `transformers.Trainer` work on `MuOmni` as on any `nn.Module`."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from muomni import MuOmni

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

IDS = torch.randint(100, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu").train()


def lora(model: MuOmni) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4))


def train(model: Any, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_plain_loop_learns(model: MuOmni) -> None:
    losses = train(model, 10)
    assert losses[-1] < losses[0] - 0.05


def test_lora_learns_and_changes_adapters_only(model: MuOmni) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = lora(model)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * 2 and all("lora_" in name for name in trainable)  # A and B, q and v, two layers
    losses = train(adapted, 10)
    assert losses[-1] < losses[0] - 0.05
    for name, tensor in adapted.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace("base_layer.", "")]), name


def test_an_adapter_is_saved_loaded_and_merged(model: MuOmni, nano_folder: Path, tmp_path: Path) -> None:
    adapted = lora(model)
    train(adapted, 5)
    adapted.eval()
    expected = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    plain = MuOmni.from_pretrained(nano_folder, device="cpu")
    assert not torch.allclose(plain(IDS).logits, expected, atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-6)
    said = loaded.generate(IDS, max_new_tokens=5, temperature=0, ignore_eos=True)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, MuOmni)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(merged.generate(IDS, max_new_tokens=5, temperature=0, ignore_eos=True), said)
    merged.save_pretrained(tmp_path / "merged")
    back = MuOmni.from_pretrained(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(back(IDS).logits, expected, rtol=0, atol=1e-5)


def step(model: Any, optimizer: torch.optim.Optimizer, backward: Any) -> Tensor:
    loss: Tensor = model(IDS, labels=IDS).loss
    backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@pytest.fixture
def accelerator() -> Iterator[Any]:
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_a_step_of_accelerate_is_a_plain_step(model: MuOmni, accelerator: Any) -> None:
    other = copy.deepcopy(model)
    plain = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = step(model, plain, Tensor.backward)
    prepared, optimizer = accelerator.prepare(other, torch.optim.AdamW(other.parameters(), lr=1e-3))
    assert torch.equal(step(prepared, optimizer, accelerator.backward), loss)
    unwrapped = accelerator.unwrap_model(prepared)
    assert isinstance(unwrapped, MuOmni)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, unwrapped.state_dict()[name]), name
    assert torch.equal(
        unwrapped.generate(IDS, max_new_tokens=5, temperature=0), model.generate(IDS, max_new_tokens=5, temperature=0)
    )


def test_the_trainer_of_transformers_learns_evaluates_and_saves(model: MuOmni, tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(
        tmp_path,
        max_steps=10,
        per_device_train_batch_size=len(IDS),
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=10,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.05
    expected = model.eval()(IDS, labels=IDS).loss.item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, abs=1e-6)
    # A checkpoint of the Trainer holds every weight once, and goes back into a model.
    weights = load_file(tmp_path / "checkpoint-10" / "model.safetensors")
    assert weights.keys() == model.state_dict().keys() and "thinker.lm_head.weight" not in weights
    other = MuOmni.from_config(model.config, device="cpu", seed=1).eval()
    other.load_state_dict(weights)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    # Loggers ask for the configuration by these names; the one thing the Trainer sets is what holds anyway.
    assert json.loads(model.config.to_json_string()) == model.config.to_dict()
    with pytest.raises(ValidationError, match="frozen"):
        model.config.use_cache = True
