"""Memory that runs out: the step is taken again in smaller micro-batches, exactly, or the run ends with advice.

The allocator's limit is faked from outside: the model's forward pass is made to raise what torch raises.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from muomni.config import Recipe
from muomni.errors import MemoryShortageError
from muomni.model import OmniModel
from muomni.training import oom_recovery as rescue_module
from muomni.training.objectives.module import LossModule
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train
from muomni.training.trainer import Trainer

REFUSAL = "CUDA out of memory. Tried to allocate 3.50 GiB. GPU 0 has a total capacity of 4.00 GiB."


class Limit:
    """Refuses training passes over more than `rows` rows, beginning with pass number `first`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, where: str = "forward", first: int = 0) -> None:
        self.passes = self.refused = 0
        forward = LossModule.forward

        def limited(losses, batch, *args):
            if not losses.training:
                return forward(losses, batch, *args)
            refuse = self.passes >= first and batch.input_ids.shape[0] > rows
            self.passes += 1
            self.refused += refuse
            if refuse and where == "forward":
                raise torch.OutOfMemoryError(REFUSAL)
            out = forward(losses, batch, *args)
            if refuse:
                # The norm's weight gets its gradient before those of the blocks: gradients are half there.
                losses.model.thinker.layers[0].mlp.down_proj.weight.register_hook(self._raise)
            return out

        monkeypatch.setattr(LossModule, "forward", limited)
        self._armed = where == "backward"

    def _raise(self, grad: torch.Tensor) -> torch.Tensor:
        if self._armed:
            self._armed = False
            raise torch.OutOfMemoryError(REFUSAL)
        return grad


def lines_of(run: Path, kind: str) -> list[dict]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict], list[dict]]:
    """Weights, optimizer and random states at the end, and every line a step or a validation wrote."""
    tensors = load_file(run / "last/model.safetensors") | load_file(run / "last/training/state.safetensors")
    return tensors, lines_of(run, "train"), lines_of(run, "val")


def same(one: Path, other: Path) -> bool:
    (a, *log_a), (b, *log_b) = outcome(one), outcome(other)
    return log_a == log_b and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def cut(recipe: Recipe, batch: int, accumulation: int, **more) -> Recipe:
    return recipe.replace(batch_size=batch, gradient_accumulation_steps=accumulation, **more)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rescued_run_ends_where_one_begun_with_the_smaller_micro_batch_ends(recipe, tmp_path, monkeypatch, where):
    train(cut(recipe, 2, 2), tmp_path / "small")
    limit = Limit(monkeypatch, 2, where)
    result = train(cut(recipe, 4, 1, on_oom="shrink_micro_batch"), tmp_path / "rescued")
    assert limit.refused == 1
    assert same(tmp_path / "small", tmp_path / "rescued")
    assert result.progress.micro_batch == 2
    (event,) = lines_of(tmp_path / "rescued", "event")
    assert (event["step"], event["phase"], event["micro_batch_before"], event["micro_batch"]) == (1, where, 4, 2)
    assert event["requested_mib"] == 3.5 * 1024


@pytest.mark.parametrize(
    ("batch", "accumulation", "rows", "sizes"), [(6, 1, 1, [3, 1]), (4, 2, 1, [2, 1]), (5, 2, 2, [2])]
)
def test_every_halving_keeps_the_rows_and_their_order(recipe, tmp_path, monkeypatch, batch, accumulation, rows, sizes):
    total = batch * accumulation
    train(cut(recipe, sizes[-1], total // sizes[-1]), tmp_path / "small")
    Limit(monkeypatch, rows)
    train(cut(recipe, batch, accumulation, on_oom="shrink_micro_batch"), tmp_path / "rescued")
    assert [event["micro_batch"] for event in lines_of(tmp_path / "rescued", "event")] == sizes
    assert same(tmp_path / "small", tmp_path / "rescued")


def test_a_size_that_does_not_divide_the_step_leaves_a_short_micro_batch(recipe, tmp_path, monkeypatch):
    """5 rows as 2 + 2 + 1: no recipe says that, so the sums differ in rounding only, without dropout."""
    still = {"preset": "nano", "thinker": {"dropout": 0.0, "hidden_size": 32, "intermediate_size": 64}}
    train(cut(recipe, 5, 1, model=still), tmp_path / "whole")
    Limit(monkeypatch, 2)
    train(cut(recipe, 5, 1, model=still, on_oom="shrink_micro_batch"), tmp_path / "rescued")
    (a, train_a, _), (b, train_b, _) = outcome(tmp_path / "whole"), outcome(tmp_path / "rescued")
    assert [line["batch"] for line in train_a] == [line["batch"] for line in train_b]
    assert [line["loss"] for line in train_a] == pytest.approx([line["loss"] for line in train_b], rel=1e-4)
    weight = "thinker.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(a[weight], b[weight], rtol=1e-2, atol=1e-4)


class Stop(Exception):
    """Stands for a kill."""


def kill_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = Trainer._after_step

    def dies(self):
        after_step(self)
        if self.progress.applied == step:
            raise Stop

    monkeypatch.setattr(Trainer, "_after_step", dies)


def test_a_rescue_in_the_middle_of_a_run_and_of_a_step(recipe, tmp_path, monkeypatch):
    """Compared with a run whose recipe is changed by hand where the other one was rescued."""
    recipe = cut(recipe, 2, 2, checkpoint={"every": 5, "keep": 2})
    by_hand, rescued = tmp_path / "by-hand", tmp_path / "rescued"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        kill_after(5, patch)
        train(recipe, by_hand)
    smaller = cut(recipe, 1, 4)
    (by_hand / "recipe.json").write_text(json.dumps(smaller.model_dump(mode="json", exclude_none=True, by_alias=True)))
    train(smaller, by_hand, resume=True)
    # Five steps are ten passes; the sixth step's second micro-batch is refused when the first has left gradients.
    limit = Limit(monkeypatch, 1, first=11)
    train(recipe.replace(on_oom="shrink_micro_batch"), rescued)
    assert limit.refused == 1 and lines_of(rescued, "event")[0]["step"] == 6
    assert same(by_hand, rescued)


@pytest.mark.parametrize("broken", ["gradients", "random"])
def test_what_the_rescue_puts_back_is_needed(recipe, tmp_path, monkeypatch, broken):
    """The comparison above fails when gradients of the failed pass stay, or the random numbers go on."""
    train(cut(recipe, 1, 4), tmp_path / "small")
    if broken == "gradients":
        monkeypatch.setattr(OmniModel, "zero_grad", lambda self, set_to_none=True: None)
    else:
        monkeypatch.setattr(rescue_module, "restore_random", lambda states, device: None)
    Limit(
        monkeypatch,
        1,
        first=1 if broken == "gradients" else 0,
        where="forward" if broken == "gradients" else "backward",
    )
    train(cut(recipe, 2, 2, on_oom="shrink_micro_batch"), tmp_path / "rescued")
    assert not same(tmp_path / "small", tmp_path / "rescued")


def test_a_resumed_run_keeps_the_smaller_micro_batch(recipe, tmp_path, monkeypatch):
    recipe = cut(recipe, 4, 1, on_oom="shrink_micro_batch")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        Limit(patch, 2)
        train(recipe, whole)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        Limit(patch, 2)
        kill_after(7, patch)
        train(recipe, killed)
    assert json.loads((killed / "last/training/state.json").read_text())["progress"]["micro_batch"] == 2
    limit = Limit(monkeypatch, 2)
    train(recipe, killed, resume=True)
    assert limit.refused == 0 and limit.passes > 0
    assert same(whole, killed)


def test_a_kill_between_rescue_and_checkpoint_resumes_with_another_rescue(recipe, tmp_path, monkeypatch):
    recipe = cut(
        recipe, 4, 1, on_oom="shrink_micro_batch", checkpoint={"every": 4, "keep": 2}, eval={"every": 0, "max_rows": 4}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        Limit(patch, 2, first=5)
        train(recipe, whole)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        Limit(patch, 2, first=5)
        kill_after(7, patch)
        train(recipe, killed)
    Limit(monkeypatch, 2, first=1)
    train(recipe, killed, resume=True)
    assert same(whole, killed)
    assert [event["step"] for event in lines_of(killed, "event")] == [6]


def test_one_row_that_does_not_fit_ends_the_run_with_the_checkpoint_intact(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    Limit(monkeypatch, 0, first=2 * 6)
    with pytest.raises(MemoryShortageError, match="step 7: out of memory in the forward pass") as caught:
        train(recipe.replace(on_oom="shrink_micro_batch"), run)
    assert [event["micro_batch"] for event in lines_of(run, "event")] == [1]
    assert "last keeps the last checkpoint" in str(caught.value) and "on_oom" not in str(caught.value)
    assert '"batch_size"' not in str(caught.value)
    monkeypatch.undo()
    assert train(recipe.replace(on_oom="shrink_micro_batch"), run, resume=True).progress.applied == 12


def test_without_rescue_the_error_says_what_would_help_and_the_run_resumes_with_it(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        Limit(patch, 1, first=2 * 6)
        with pytest.raises(MemoryShortageError) as caught:
            train(recipe, run)
        text = str(caught.value)
        assert "step 7: out of memory in the forward pass: 3,584.0 MiB more were asked for on cpu" in text
        assert "micro-batches of 2 rows × 32 tokens" in text
        assert all(f"{name} " in text for name in ("weights", "gradients", "optimizer", "activations", "cache"))
        assert text.count("MiB less") == 3 and '"batch_size": 1, "gradient_accumulation_steps": 4' in text
        assert '"on_oom": "shrink_micro_batch"' in text
        assert not lines_of(run, "event")
        result = train(recipe.replace(on_oom="shrink_micro_batch"), run, resume=True)
    assert result.progress.applied == 12


def test_the_optimizer_is_not_taken_again(recipe, tmp_path, monkeypatch):
    """It may have changed some of the weights."""

    def no_room(*_args, **_kwargs):
        raise torch.OutOfMemoryError(REFUSAL)

    monkeypatch.setattr(torch.optim.AdamW, "step", no_room)
    with pytest.raises(MemoryShortageError, match="in the optimizer's step") as caught:
        train(recipe.replace(on_oom="shrink_micro_batch"), tmp_path / "run")
    assert '"muon"' in str(caught.value) and '"batch_size"' not in str(caught.value)
    assert not lines_of(tmp_path / "run", "event")


def test_validation_that_runs_out_of_memory_says_so(recipe, tmp_path, monkeypatch):
    from muomni.training import omni_task

    def no_room(*_args, **_kwargs):
        raise MemoryError("Unable to allocate 2.00 GiB for an array")

    monkeypatch.setattr(omni_task, "evaluate", no_room)
    with pytest.raises(MemoryShortageError, match="step 5: out of memory in validation: 2,048.0 MiB"):
        train(recipe, tmp_path / "run")


def test_other_errors_are_not_taken_for_a_shortage(recipe, tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(LossModule, "forward", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(recipe.replace(on_oom="shrink_micro_batch"), tmp_path / "run")


def test_the_memory_of_a_run_is_written_down(recipe, tmp_path):
    result = train(recipe, tmp_path / "run")
    speed = lines_of(tmp_path / "run", "speed")
    names = {"rss_mib", "rss_peak_mib", "available_mib", "weights_mib", "gradients_mib", "optimizer_mib", "cache_mib"}
    assert speed and all(names | {"activations_mib", "other_mib"} <= line.keys() for line in speed)
    stored = json.loads((tmp_path / "run/memory.json").read_text())
    forecast = stored.pop("forecast")
    assert forecast["peak_mib"] > forecast["weights_mib"] > 0
    assert stored == result.memory.as_dict()
    assert stored["categories"]["optimizer_mib"] >= stored["categories"]["weights_mib"] > 0


@pytest.mark.gpu
def test_a_gpu_that_is_really_full_is_rescued(recipe, tmp_path):
    device = torch.device("cuda", 0)
    recipe = cut(
        recipe, 2048, 1, device="cuda", on_oom="shrink_micro_batch", max_steps=3, precision="fp32", compile="off"
    )
    result = train(recipe, tmp_path / "whole")
    peak = result.memory.reading.reserved_peak
    assert peak is not None
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total, device)
    try:
        rescued = train(recipe, tmp_path / "rescued")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert rescued.progress.applied == 3 and (rescued.progress.micro_batch or 2048) < 2048
    assert list((tmp_path / "rescued").glob("oom-*.txt"))
