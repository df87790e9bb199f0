"""Memory by category is that of the tensors there are, and errors that mean "no memory" are known as such."""

import json
import mmap
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from muomni.accel import activation_checkpointing
from muomni.accel.memory.monitor import MIB, Categories, MemoryMonitor, MemoryReport, Reading, storage_bytes
from muomni.accel.memory.nvml import open_nvml
from muomni.accel.memory.out_of_memory import BF16_SAVES, Workload, explain, find_shortage, remedies, write_snapshot
from muomni.accel.step_config import StepConfig
from muomni.config import OmniConfig, Recipe, ThinkerConfig
from muomni.model import OmniModel

CPU = torch.device("cpu")
ROWS, TOKENS = 8, 64


def make_model(tied: bool = True) -> OmniModel:
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    more: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": tied}
    return OmniModel(OmniConfig(thinker=ThinkerConfig(**sizes, **more)), torch.Generator().manual_seed(0))


def make_recipe(**more) -> Recipe:
    return Recipe.model_validate(
        {"data": {"train": "x", "seq_len": TOKENS}, "max_steps": 100, "batch_size": ROWS} | more
    )


def make_load(
    recipe: Recipe,
    micro_batch: int = ROWS,
    precision: str = "fp32",
    bf16_works: bool = True,
    matrix_bytes: int = 3 * MIB,
) -> Workload:
    step = StepConfig.of(recipe).replace(precision=precision)
    optimizer, sizes = recipe.optimizer.name, {"layers": 4, "hidden_size": 64, "matrix_bytes": matrix_bytes}
    return Workload(step, micro_batch, recipe.data.seq_len, optimizer, bf16_works, **sizes)


def loss_of(model: OmniModel, rows: int = ROWS) -> torch.Tensor:
    ids = torch.randint(128, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    return model(ids, labels=ids).loss


def test_a_storage_counts_once():
    block = torch.zeros(100)
    assert storage_bytes([block]) == 400
    assert storage_bytes([block, block[:10], block.view(10, 10), torch.zeros(5)]) == 420
    assert storage_bytes([block[:10]]) == 400  # a view keeps all of it alive
    assert storage_bytes([]) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_categories_are_those_of_the_tensors(tied):
    model = make_model(tied)
    weights = 4 * model.num_parameters()
    assert model.thinker.lm_head.weight.numel() * 4 + 4 * make_model(True).num_parameters() == weights or tied
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    monitor = MemoryMonitor(model, [optimizer], CPU)
    before = monitor.categories(monitor.read())
    assert (before.weights, before.gradients, before.optimizer) == (weights, 0, 0)
    loss_of(model).backward()
    assert monitor.categories_now(monitor.read()).gradients == weights
    optimizer.step()
    optimizer.zero_grad()
    after = monitor.categories(monitor.read(), cache=[torch.zeros(1000)])
    assert after.gradients == weights, "seen by the hook, though they are gone now"
    assert 2 * weights <= after.optimizer <= 2 * weights + 64 * len(list(model.parameters()))
    assert after.cache == 4000
    assert monitor.categories_now(monitor.read()).gradients == 0


def test_gradients_are_looked_at_once_after_each_reading(monkeypatch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = MemoryMonitor(model, [optimizer], CPU)
    looks = []
    live = monitor._live_gradients
    monkeypatch.setattr(monitor, "_live_gradients", lambda: looks.append(1) or live())
    for _ in range(3):
        optimizer.step()
    assert len(looks) == 1
    monitor.read()
    optimizer.step()
    assert len(looks) == 2


def test_the_process_grows_by_what_is_taken():
    before = MemoryMonitor(make_model(), [], CPU).read()
    # A mapping of its own: a process that keeps freed memory may have had a tensor's room already.
    block = torch.frombuffer(mmap.mmap(-1, 64 * MIB), dtype=torch.float32).fill_(1)
    after = MemoryMonitor(make_model(), [], CPU).read()
    assert 50 * MIB < after.now - before.now < 100 * MIB
    assert after.peak >= after.now and after.available > 0 and block.sum() > 0


def test_activations_are_what_is_left_of_the_peak():
    model = make_model()
    monitor = MemoryMonitor(model, [], CPU)
    start = monitor.read()
    known = Reading("rss", now=start.now, peak=start.peak + 50 * MIB, available=0)
    split = monitor.categories(known)
    assert split.activations is not None
    assert (
        split.weights + split.gradients + split.optimizer + split.cache + split.other + split.activations == known.peak
    )
    unknown = monitor.categories(Reading("rss", now=start.now, peak=monitor._peak_before, available=0))
    assert unknown.activations is None and unknown.as_dict()["activations_mib"] is None


def test_the_report_says_what_is_derived_and_what_is_missing():
    reading = Reading("gpu", 100 * MIB, 300 * MIB, 1000 * MIB, 400 * MIB, 450 * MIB, retries=3, ooms=1)
    report = MemoryReport("cuda:0", reading, Categories(MIB, MIB, 2 * MIB, 296 * MIB, 0, 0), ("NVML is missing",))
    stored = json.loads(json.dumps(report.as_dict()))
    assert stored["reading"] == {
        "gpu_mib": 100,
        "gpu_peak_mib": 300,
        "available_mib": 1000,
        "gpu_reserved_mib": 400,
        "gpu_reserved_peak_mib": 450,
        "alloc_retries": 3,
        "ooms": 1,
    }
    table = "\n".join(report.lines())
    assert "296.0  derived: the peak minus the rest" in table and "NVML is missing" in table
    assert "alloc retries" in table and "nvml" not in table.replace("NVML", "")
    assert str(reading) == "gpu 100 MiB (peak 300, reserved 400)"


def test_a_warning_comes_with_the_first_retry():
    monitor = MemoryMonitor(make_model(), [], CPU)
    assert monitor.warning(Reading("gpu", 0, 0, 0, retries=0)) is None
    assert "2 allocator retries" in str(monitor.warning(Reading("gpu", 0, 0, 0, retries=2)))


def test_a_real_refusal_is_recognised():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 50, dtype=torch.uint8)
    found = find_shortage(of_torch.value, "backward")
    assert found is not None and found.requested == 1 << 50
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 50, dtype=np.uint8)
    found = find_shortage(of_numpy.value, "forward")
    assert found is not None and found.requested == 1 << 50


@pytest.mark.parametrize(
    ("error", "requested"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has ..."), 20.5 * MIB),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 bytes. GPU 0 has ..."), 512),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB). Tried to allocate 256.00 MB on ..."),
            256 * MIB,
        ),
        (MemoryError(), None),
    ],
)
def test_the_size_that_was_asked_for_is_read(error, requested):
    found = find_shortage(error, "forward")
    assert found is not None and found.requested == requested


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_no_shortage(error):
    assert find_shortage(error, "forward") is None


def settings(found: list) -> list[str]:
    return [remedy.setting for remedy in found]


def test_remedies_are_those_that_apply():
    every = settings(remedies(make_load(make_recipe()), 100 * MIB, "backward"))
    assert every[0] == '"gradient_checkpointing": "full"' and every[-1] == '"optimizer": {"name": "muon"}'
    assert '"batch_size": 4, "gradient_accumulation_steps": 2' in every
    assert '"precision": "bf16"' in every and '"data": {"seq_len": 32}' in every
    done = make_recipe(gradient_checkpointing="full", optimizer={"name": "muon"}, batch_size=1)
    assert settings(remedies(make_load(done, 1, "bf16"), 100 * MIB, "forward")) == ['"data": {"seq_len": 32}']
    assert '"precision": "bf16"' not in settings(remedies(make_load(make_recipe(), bf16_works=False), MIB, "forward"))
    assert settings(remedies(make_load(make_recipe()), 100 * MIB, "optimizer")) == ['"optimizer": {"name": "muon"}']
    in_validation = settings(remedies(make_load(make_recipe()), 100 * MIB, "validation"))
    assert not any("checkpointing" in setting or "muon" in setting for setting in in_validation)


def test_the_smaller_batch_cuts_the_step_evenly_and_its_saving_is_in_proportion():
    (first, *_) = (
        r for r in remedies(make_load(make_recipe(batch_size=9), 9), 90 * MIB, "forward") if "batch" in r.setting
    )
    assert first.setting == '"batch_size": 3, "gradient_accumulation_steps": 3' and first.saving == 60 * MIB


def test_without_measured_activations_there_are_no_made_up_savings():
    found = remedies(make_load(make_recipe()), 0, "forward")
    assert [r.saving for r in found if "muon" not in r.setting] == [None] * 4
    assert "saving not known" in str(found[0])


def test_the_message_names_sizes_and_the_best_three():
    load = make_load(make_recipe())
    shortage = find_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB."), "backward")
    assert shortage is not None
    best = remedies(load, 100 * MIB, "backward")
    text = explain(shortage, load, CPU, Categories(MIB, MIB, 2 * MIB, 100 * MIB, 0, 5 * MIB), best)
    assert "out of memory in the backward pass: 64.0 MiB more were asked for on cpu" in text
    assert "weights 1.0, gradients 1.0, optimizer 2.0, activations 100.0, cache 0.0, other 5.0 MiB" in text
    assert text.count("about") == 3 and "  3. " in text and "  4. " not in text
    assert "No setting would help" in explain(shortage, load, CPU, Categories(0, 0, 0, 0, 0, 0), [])


def saved_bytes(model: OmniModel, rows: int = ROWS, bf16: bool = False) -> int:
    """What the forward pass keeps for the backward pass besides weights, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16, bf16):
        loss = loss_of(model, rows)
    size = storage_bytes(kept.values())
    del loss
    return size


def test_the_estimates_are_about_right():
    """Within a factor of 1.5 of what the model really keeps less; the message says "about"."""
    full = saved_bytes(make_model())
    matrices = sum(4 * p.numel() for name, p in make_model().named_parameters() if "proj" in name)
    load = make_load(make_recipe(), matrix_bytes=matrices)
    by_setting = {r.setting: r.saving for r in remedies(load, full, "backward")}
    halved = by_setting['"batch_size": 4, "gradient_accumulation_steps": 2']
    assert halved == pytest.approx(full - saved_bytes(make_model(), ROWS // 2), rel=0.33)
    bf16 = by_setting['"precision": "bf16"']
    assert bf16 == pytest.approx(full - saved_bytes(make_model(), bf16=True), rel=0.33), (BF16_SAVES, full)
    # Under recomputation the inputs of blocks are what the pass keeps, and one block at a time comes back.
    model = make_model()
    activation_checkpointing.enable(model, "full")
    recomputed = by_setting['"gradient_checkpointing": "full"']
    assert recomputed == pytest.approx(full - saved_bytes(model) - full // 4, rel=0.33)


def test_only_a_gpu_has_a_snapshot_and_nvml(tmp_path):
    assert write_snapshot(tmp_path, "oom", CPU) is None and not list(tmp_path.iterdir())
    assert open_nvml(CPU) == (None, None)


def fake_nvml(monkeypatch: pytest.MonkeyPatch, processes: list, fails: bool = False) -> list[str]:
    asked: list[str] = []

    class NVMLError(Exception):
        pass

    def handle(uuid: str) -> str:
        asked.append(uuid)
        if fails:
            raise NVMLError("Driver Not Loaded")
        return "handle"

    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=900)
    module.nvmlDeviceGetComputeRunningProcesses = lambda _: processes
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-cd"))
    return asked


def test_nvml_tells_of_this_process_among_others(monkeypatch):
    ours = SimpleNamespace(pid=os.getpid(), usedGpuMemory=600)
    asked = fake_nvml(monkeypatch, [SimpleNamespace(pid=1, usedGpuMemory=300), ours])
    nvml, note = open_nvml(torch.device("cuda", 0))
    assert nvml is not None and note is None and asked == ["GPU-ab-cd"]
    assert (nvml.process_bytes(), nvml.device_bytes()) == (600, 900)


def test_what_nvml_does_not_tell_is_said(monkeypatch):
    fake_nvml(monkeypatch, [SimpleNamespace(pid=1, usedGpuMemory=300)])
    nvml, note = open_nvml(torch.device("cuda", 0))
    assert nvml is not None and nvml.process_bytes() is None and "no process of this id" in str(note)
    fake_nvml(monkeypatch, [], fails=True)
    nvml, note = open_nvml(torch.device("cuda", 0))
    assert nvml is None and "Driver Not Loaded" in str(note)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml, note = open_nvml(torch.device("cuda", 0))
    assert nvml is None and "muomni[gpu]" in str(note)


@pytest.mark.gpu
def test_a_gpu_is_read_from_its_allocator(tmp_path):
    device = torch.device("cuda", 0)
    model = make_model().to(device)
    monitor = MemoryMonitor(model, [], device)
    block = torch.zeros(64 * MIB // 4, device=device)
    reading = monitor.read()
    assert reading.now == torch.cuda.memory_allocated(device) and reading.peak >= block.nbytes
    assert reading.reserved is not None and reading.reserved >= reading.now
    assert reading.retries is not None and reading.ooms is not None
    split = monitor.categories(reading)
    assert split.activations == pytest.approx(block.nbytes, rel=0.05)
    path = write_snapshot(tmp_path, "oom", device)
    assert path is not None and "PyTorch CUDA memory summary" in path.read_text()
