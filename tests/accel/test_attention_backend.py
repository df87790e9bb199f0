"""Which attention is taken, why another is not, and that what is taken on a GPU is right there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from muomni import MuOmni
from muomni.accel import attention_backend
from muomni.accel.attention_backend import AttentionChoice, pick_attention
from muomni.accel.distributed import alone
from muomni.accel.execution_plan import make_plan
from muomni.config import Recipe, parse, preset
from muomni.errors import ConfigError
from muomni.model import KVCache
from muomni.ops.attention import Segments, attention, attention_reference, flash_attn, flex, varlen
from muomni.training.resolve import resolve
from tests.accel.test_activation_checkpointing import CONFIG, IDS, SEGMENTS, make_model
from tests.ops.attention.test_attention import fake_flash_attn

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16


def test_a_cpu_takes_sdpa_and_says_why():
    choice = pick_attention("auto", CPU, torch.float32, 64)
    assert choice.backend == "sdpa" and choice.attend is attention and "for CPUs" in choice.reason


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("varlen", "kernels are for NVIDIA GPUs, and the device is cpu"),
        ("flash_attn", "kernels are for NVIDIA GPUs, and the device is cpu"),
        ("flex", "FlexAttention has no backward pass on cpu"),
    ],
)
def test_a_named_backend_that_cannot_train_here_is_an_error_that_names_the_others(name, why):
    with pytest.raises(ConfigError, match=f'attention = "{name}": .*{why}; here: sdpa, reference, or "auto"'):
        pick_attention(name, CPU, BF16, 64)


@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_a_named_backend_that_works_everywhere_is_taken(name):
    assert pick_attention(name, CPU, torch.float32, 7).backend == name


def a_gpu(monkeypatch, capability: tuple[int, int], fails: str | None = None) -> None:
    """A machine whose GPU passes, or fails, the small case."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(attention_backend, "_fails", lambda *_: fails)
    monkeypatch.setattr(attention_backend, "_installed_flash", lambda _device: None)


def test_a_gpu_takes_varlen_when_the_small_case_passes(monkeypatch):
    a_gpu(monkeypatch, (8, 0))
    choice = pick_attention("auto", CUDA, BF16, 64)
    assert choice.backend == "varlen" and choice.attend is varlen.attention


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "fails", "why"),
    [
        ((7, 5), torch.float16, 64, None, "need SM80 or newer, and the GPU is SM75"),
        ((8, 0), torch.float32, 64, None, "the precision is float32"),
        ((9, 0), BF16, 60, None, "head_dim is 60"),
        ((9, 0), BF16, 264, None, "head_dim is 264"),
        ((9, 0), BF16, 64, "a small case comes out wrong", "a small case comes out wrong"),
    ],
)
def test_where_varlen_cannot_run_auto_says_why_and_naming_it_is_an_error(
    monkeypatch, capability, dtype, head_dim, fails, why
):
    a_gpu(monkeypatch, capability, fails)
    choice = pick_attention("auto", CUDA, dtype, head_dim)
    assert choice.backend == "sdpa" and why in choice.reason
    with pytest.raises(ConfigError, match=f'attention = "varlen": .*{why}'):
        pick_attention("varlen", CUDA, dtype, head_dim)


def test_flash_attn_that_is_not_installed_is_an_error(monkeypatch):
    a_gpu(monkeypatch, (8, 0))
    with pytest.raises(ConfigError, match='"flash_attn": no flash-attn 2, 3 or 4 .* is installed; here: sdpa, varlen'):
        pick_attention("flash_attn", CUDA, BF16, 64)


@pytest.mark.parametrize(
    ("files", "capability", "version"),
    [
        (["flash_attn/__init__.py", "flash_attn/flash_attn_interface.py"], (8, 0), "FA2"),
        (["flash_attn_interface.py"], (9, 0), "FA3"),
        (["flash_attn_interface.py"], (8, 0), None),
        (["flash_attn/cute/interface.py"], (9, 0), "FA4"),
        (["flash_attn/cute/interface.py", "flash_attn_interface.py"], (10, 0), "FA4"),
        (["flash_attn/cute/interface.py"], (12, 0), None),
        ([], (9, 0), None),
    ],
)
def test_the_newest_flash_attention_for_the_gpu_is_found_without_importing_it(
    monkeypatch, tmp_path, files, capability, version
):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise AssertionError('imported')" if name != "flash_attn/__init__.py" else "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert attention_backend._installed_flash(CUDA) == version


def test_flash_attn_2_is_its_package_and_3_goes_through_torchs_registry(monkeypatch):
    a_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(attention_backend, "_installed_flash", lambda _device: "FA2")
    assert pick_attention("flash_attn", CUDA, BF16, 64).attend is flash_attn.attention
    monkeypatch.setattr(attention_backend, "_installed_flash", lambda _device: "FA3")
    activated: list[str] = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
    monkeypatch.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: activated.append("restored"))
    choice = pick_attention("flash_attn", CUDA, BF16, 64)
    assert (choice.attend, choice.registered) == (varlen.attention, "FA3")
    assert activated == ["FA3", "restored"]
    attention_backend.apply(make_model(), choice)
    assert activated == ["FA3", "restored", "FA3"]


def test_a_flash_attn_that_does_not_load_is_an_error_that_says_so(monkeypatch):
    a_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(attention_backend, "_installed_flash", lambda _device: "FA3")

    def broken(_name: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10\nmore")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", broken)
    with pytest.raises(ConfigError, match="FA3 does not load: undefined symbol: _ZN3c10;"):
        pick_attention("flash_attn", CUDA, BF16, 64)


def test_the_small_case_passes_what_is_right_and_fails_what_is_wrong(monkeypatch):
    def at_the_start(q: Tensor, k: Tensor, v: Tensor, _: Segments | None = None, /, *, causal: bool = True) -> Tensor:
        return attention(q, k, v)

    def without_gradient(
        q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, /, *, causal: bool = True
    ) -> Tensor:
        out = attention(q, k, v, segments)
        return out + 0 * q.sum() + (attention(q, k.detach(), v, segments) - out)

    for dtype in (torch.float32, BF16):
        assert attention_backend._fails(attention, CPU, dtype, 16) is None
        assert attention_backend._fails(at_the_start, CPU, dtype, 16) == "a small case comes out wrong"
        assert attention_backend._fails(without_gradient, CPU, dtype, 16) == "a small case comes out wrong"
        nan = attention_backend._fails(lambda q, *rest, causal=True: attention(q, *rest) * torch.nan, CPU, dtype, 16)
        assert nan == "a small case comes out wrong"
    assert attention_backend._fails(flex.attention, CPU, torch.float32, 16).startswith(
        "a small case fails: FlexAttention does"
    )
    assert attention_backend._fails(varlen.attention, CPU, torch.float32, 16).startswith(
        "a small case fails: varlen attention"
    )
    import sys

    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn())
    assert attention_backend._fails(flash_attn.attention, CPU, BF16, 16) is None


def test_the_function_is_set_from_outside_on_one_model_only():
    one, other = make_model(), make_model()
    called: list[int] = []

    def counting(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True) -> Tensor:
        called.append(q.shape[1])
        return attention_reference(q, k, v, segments, causal=causal)

    names = list(one.state_dict())
    attention_backend.apply(one, AttentionChoice("reference", "test", counting))
    one.eval(), other.eval()
    torch.testing.assert_close(one(IDS, segments=SEGMENTS).logits, other(IDS, segments=SEGMENTS).logits)
    assert called == [24] * CONFIG.thinker.num_hidden_layers
    assert list(one.state_dict()) == names


def test_every_choice_gives_the_model_the_same_answer_from_a_cache():
    wanted = None
    for attend in (attention, varlen.attention, flex.attention, attention_reference):
        model: MuOmni = make_model().eval()
        attention_backend.apply(model, AttentionChoice("sdpa", "test", attend))
        cache = KVCache(CONFIG.thinker, 2, 24)
        with torch.inference_mode():
            logits = torch.cat([model(part, cache=cache).logits for part in IDS.split([10, 1, 13], dim=1)], 1)
        wanted = logits if wanted is None else wanted
        torch.testing.assert_close(logits, wanted)


def make_recipe(**changes: object) -> Recipe:
    return parse(Recipe, {"device": "cpu", "max_steps": 100, "data": {"train": "none.txt"}} | changes, "test")


def test_the_plan_says_which_attention_it_took_and_sets_it():
    plan = make_plan(make_recipe(attention="reference"), preset("nano"))
    assert "attention reference: as asked" in plan.lines
    model = make_model()
    plan.apply(model, alone())
    assert {block.self_attn.attend for block in model.thinker.layers} == {attention_reference}
    assert any(line.startswith("attention sdpa: ") for line in make_plan(make_recipe(), preset("nano")).lines)
    with pytest.raises(ConfigError, match='attention = "varlen"'):
        make_plan(make_recipe(attention="varlen"), preset("nano"))


def test_the_plan_asks_for_the_head_size_of_the_model_that_is_trained(monkeypatch, nano_folder):
    asked: list[tuple[torch.dtype, *tuple[int, ...]]] = []

    def spy(name: str, device: torch.device, dtype: torch.dtype, *head_dims: int) -> AttentionChoice:
        asked.append((dtype, *head_dims))
        return AttentionChoice("sdpa", "test", attention)

    monkeypatch.setattr(attention_backend, "pick_attention", spy)
    resolve(make_recipe(precision="fp32", model={"preset": "tiny", "thinker": {"head_dim": 48}}))
    short = {"train": "none.txt", "seq_len": 64}
    resolve(make_recipe(precision="fp32", model={"init_from": str(nano_folder)}, data=short))
    nano = MuOmni.from_pretrained(nano_folder, device="cpu").config.thinker.head_dim
    assert asked == [(torch.float32, 48), (torch.float32, nano)]
    both = {"preset": "tiny", "vision": {"num_attention_heads": 4}, "audio": True}
    resolve(make_recipe(precision="fp32", model=both))
    assert asked[2:] == [(torch.float32, 64, 48, 64)]


def test_a_backend_has_to_serve_the_encoders_too(monkeypatch):
    a_gpu(monkeypatch, (9, 0))
    assert pick_attention("auto", CUDA, BF16, 64, 48, 32).backend == "varlen"
    choice = pick_attention("auto", CUDA, BF16, 64, 48, 36)
    assert choice.backend == "sdpa" and "head_dim is 36" in choice.reason
    asked: list[tuple[int, bool]] = []

    def fails(attend, device, dtype, head_dim, causal=True):
        asked.append((head_dim, causal))
        return None if causal else "a small case comes out wrong"

    monkeypatch.setattr(attention_backend, "_fails", fails)
    choice = pick_attention("auto", CUDA, BF16, 64, 48, 48)
    assert choice.backend == "sdpa" and "comes out wrong" in choice.reason and asked == [(64, True), (48, False)]


def test_the_small_case_is_tried_both_ways():
    def always_causal(
        q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, /, *, causal: bool = True
    ) -> Tensor:
        return attention_reference(q, k, v, segments)

    assert attention_backend._fails(always_causal, CPU, torch.float32, 16) is None
    assert attention_backend._fails(always_causal, CPU, torch.float32, 16, False) == "a small case comes out wrong"
    assert attention_backend._fails(attention, CPU, torch.float32, 16, False) is None


# On a GPU, each kernel by itself.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["sdpa", "varlen", "flash_attn", "flex"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_a_gpu_the_error_is_at_most_twice_that_of_plain_attention(name, dtype, head_dim):
    try:
        attend = pick_attention(name, CUDA, dtype, head_dim).attend
    except ConfigError as error:
        pytest.skip(str(error))
    draw = torch.Generator().manual_seed(0)
    for lengths, rows, queries in (([700, 3, 1, 320], 2, 1024), ([256], 1, 256), (None, 2, 200), (None, 1, 1)):
        keys = 1024 if lengths is None else queries
        low = [
            torch.randn(rows, count, heads, head_dim, generator=draw).to(CUDA, dtype)
            for count, heads in ((queries, 4), (keys, 2), (keys, 2), (queries, 4))
        ]
        segments: Any = None
        if lengths is not None:
            bounds = torch.tensor([0, *lengths * rows]).cumsum(0).to(CUDA, torch.int32)
            segments = Segments(bounds, max(lengths)).rounded(rows * queries)
        exact = attention_backend._results(attention_reference, [x.double() for x in low], segments)
        plain = attention_backend._results(attention_reference, low, segments)
        for got, rough, right in zip(attention_backend._results(attend, low, segments), plain, exact, strict=True):
            rounding = right.abs().max() * torch.finfo(dtype).eps
            assert (got - right).abs().max() <= 2 * (rough - right).abs().max() + rounding


@pytest.mark.gpu
def test_on_a_gpu_auto_takes_varlen():
    choice = pick_attention("auto", CUDA, BF16, 64)
    if torch.cuda.get_device_capability() < (8, 0):
        assert choice.backend == "sdpa" and "SM80" in choice.reason
    else:
        assert choice.backend == "varlen", choice.reason
