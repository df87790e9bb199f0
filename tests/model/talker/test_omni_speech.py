"""The whole model with a Talker: what it computes and learns, its folder, int8, and the optimizations of blocks."""

from pathlib import Path

import pytest
import torch

from muomni.accel import activation_checkpointing
from muomni.accel.compile import blocks as compilation
from muomni.accel.int8 import dequantize_model, quantize, tune
from muomni.config import OmniConfig
from muomni.config.codec import codec_preset
from muomni.errors import UserError
from muomni.formats.codec import load_codec, save_codec
from muomni.formats.pretrained import load_model, save_model
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec
from muomni.model.codec.frozen import FrozenCodec
from muomni.model.int8_layers import Int8Embedding, Int8Linear
from muomni.model.talker import SpeechBatch
from muomni.training.freezing import freeze, parts_of
from muomni.training.objectives.module import LossModule
from muomni.training.objectives.speech import talker_losses
from tests.model.talker.speech import PATTERNS, make_config, make_model, make_speech
from tests.training.objectives.batches import losses_of, make_batch

IDS = torch.tensor([[5, 6, 7, 8, 9]])
NO_LABELS = torch.full_like(IDS, -100)
SPEECH = {"text": 0.0, "speech": 1.0}


def speak(model: OmniModel, speech: SpeechBatch) -> torch.Tensor:
    return losses_of(model, make_batch(IDS, NO_LABELS, speech=speech), SPEECH).total


def speech_of(model: OmniModel, seed: int = 0) -> SpeechBatch:
    assert model.talker is not None
    return make_speech(model.talker.config, seed=seed)


def test_states_are_those_of_each_sentence_read_alone():
    model = make_model(thinker_layer=1)
    ids, lengths = torch.randint(60, (70,)), (3, 1, 66)
    found = model.talker_states(ids, lengths)
    for part, states in zip(torch.split(ids, list(lengths)), torch.split(found, list(lengths)), strict=True):
        x = model.thinker.embed_tokens(part)[None]
        seen: list[torch.Tensor] = []
        hook = model.thinker.layers[0].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        model.thinker(inputs_embeds=x)
        hook.remove()
        torch.testing.assert_close(states, seen[0][0], rtol=1e-9, atol=1e-10)
    for wrong in ((3, 1), (70, 0)):
        with pytest.raises(ValueError, match="cannot be sentences"):
            model.talker_states(ids, wrong)


def test_the_loss_is_the_talkers_and_adds_to_the_texts():
    model = make_model()
    speech = speech_of(model)
    assert model.talker is not None
    spoken = talker_losses(model.talker, speech, model.talker_states(speech.ids, speech.id_lengths))
    wanted = (spoken.codes + spoken.moves) / speech.num_frames
    alone = losses_of(model, make_batch(IDS, NO_LABELS, speech=speech), SPEECH)
    assert list(alone.losses) == ["speech"]
    torch.testing.assert_close(alone.total, wanted)
    torch.testing.assert_close(alone.details["speech_codes"], spoken.codes)
    less = losses_of(model, make_batch(IDS, NO_LABELS, speech=speech), {"text": 0.0, "speech": 0.5})
    torch.testing.assert_close(less.total, wanted / 2)
    both = losses_of(model, make_batch(IDS, speech=speech), {"speech": 2.0}, speech=7)
    text = model(IDS, labels=IDS).loss
    torch.testing.assert_close(both.total, text + 2 * wanted * speech.num_frames / 7)
    # Without a weight it is not computed.
    assert list(losses_of(model, make_batch(IDS, speech=speech)).losses) == ["text"]


def test_what_a_model_cannot_do_is_refused():
    mute = OmniModel(make_config().with_speech(None, None))
    for ask in (
        lambda: LossModule(mute, {"speech": 1.0}),
        lambda: mute.talker_states(IDS[0], (5,)),
    ):
        with pytest.raises(UserError, match="does not speak"):
            ask()


def test_a_configuration_holds_a_talker_and_its_codec():
    config = make_config()
    assert OmniConfig.model_validate_json(config.model_dump_json()) == config
    assert config.with_speech(None, None).talker is None
    with pytest.raises(ValueError, match="exactly if talker is"):
        config.replace(codec=None)
    with pytest.raises(ValueError, match="the codec's, 64"):
        config.replace(codec=codec_preset("nano").replace(num_codebooks=3).model_dump())
    with pytest.raises(ValueError, match="Thinker's 2 blocks"):
        make_config(thinker_layer=3)


def learning(model: OmniModel) -> set[str]:
    """The parts that got gradients."""
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parts_learn_unless_they_are_frozen_and_the_codec_never_does(pattern):
    # Without dropping states: where chance drops those of all three sentences the Thinker has no gradient.
    model = make_model(pattern=pattern, conditioning_dropout=0.0).train()
    speech = speech_of(model)
    assert "codec" not in parts_of(model) and not model.codec.training
    speak(model, speech).backward()
    assert learning(model) == {"thinker", "talker"}
    missing = [name for name, p in model.talker.named_parameters() if p.grad is None]
    assert missing == []
    for frozen, wanted in ((["thinker"], {"talker"}), (["talker"], {"thinker"})):
        model.zero_grad()
        freeze(model, frozen)
        speak(model, speech).backward()
        assert learning(model) == wanted
    freeze(model, [])
    model.requires_grad_(True)
    assert not any(p.requires_grad for p in model.codec.parameters())
    assert not any(module.training for module in model.train().codec.modules())


def test_the_codec_stays_in_fp32_and_says_the_same():
    config = make_config()
    model = OmniModel(config, torch.Generator().manual_seed(0))
    codes = torch.randint(7, (3, 6))
    before = model.codec.decode(codes)
    for dtype in (torch.bfloat16, torch.float64):
        model.to(dtype)
        assert model.talker.norm.weight.dtype == dtype and model.dtype == dtype
        assert all(p.dtype == torch.float32 for p in model.codec.parameters())
        assert torch.equal(model.codec.decode(codes), before)


def test_the_first_weights_do_not_depend_on_the_talker_nor_the_generator_on_the_codec():
    plain = OmniModel(make_config().with_speech(None, None), torch.Generator().manual_seed(3))
    omni = OmniModel(make_config(), torch.Generator().manual_seed(3))
    assert torch.equal(*(each.thinker.get_parameter("layers.1.mlp.up_proj.weight") for each in (plain, omni)))
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    codec = make_config().codec
    assert codec is not None
    FrozenCodec.to_be_loaded(codec)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_folder_gives_the_model_back(tmp_path: Path, pattern):
    model = make_model(pattern=pattern, dtype=torch.float32)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    speech, codes = speech_of(model), torch.randint(7, (3, 6))
    assert torch.equal(speak(loaded, speech), speak(model, speech))
    assert torch.equal(loaded.codec.decode(codes), model.codec.decode(codes))
    samples = torch.randn(4000)
    assert torch.equal(loaded.codec.encode(samples), model.codec.encode(samples))
    assert not any(p.requires_grad for p in loaded.codec.parameters())
    half = load_model(tmp_path, dtype=torch.bfloat16)
    assert half.talker.norm.weight.dtype == torch.bfloat16
    assert torch.equal(half.codec.decode(codes), model.codec.decode(codes))


def test_a_trained_codec_goes_into_a_model(tmp_path: Path):
    config = make_config()
    assert config.codec is not None
    codec = SpeechCodec(config.codec, torch.Generator().manual_seed(4)).eval()
    save_codec(codec, tmp_path)
    frozen = FrozenCodec(config.codec)
    frozen.load_state_dict(load_codec(tmp_path).state_dict())
    codes = torch.randint(7, (3, 6))
    assert torch.equal(frozen.decode(codes), codec.decode(codes))
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_int8_says_nearly_the_same_and_is_saved(tmp_path: Path, pattern):
    model = make_model(pattern=pattern, dtype=torch.float32)
    speech, codes = speech_of(model), torch.randint(7, (3, 6))
    with torch.no_grad():
        wanted = speak(model, speech)
        decoded = model.codec.decode(codes)
        quantize(model)
        assert isinstance(model.talker.embed_codes, Int8Embedding) and isinstance(model.talker.moves, Int8Linear)
        assert not any(isinstance(m, Int8Linear | Int8Embedding) for m in model.codec.modules())
        assert torch.equal(model.codec.decode(codes), decoded)
        found = speak(model, speech)
        assert found != wanted
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)
        save_model(model, tmp_path)
        loaded = load_model(tmp_path)
        tune(loaded)  # the same kernels: those that were faster
        torch.testing.assert_close(speak(loaded, speech), found, rtol=1e-5, atol=1e-5)
        assert torch.equal(loaded.codec.decode(codes), decoded)
        dequantize_model(model)
        torch.testing.assert_close(speak(model, speech), found, rtol=0.01, atol=0)
    assert all(p.requires_grad for p in model.talker.parameters())
    assert not any(p.requires_grad for p in model.codec.parameters())


def test_a_float_folder_is_read_as_int8(tmp_path: Path):
    model = make_model(dtype=torch.float32)
    save_model(model, tmp_path)
    speech = speech_of(model)
    loaded = load_model(tmp_path, int8=True)
    quantize(model)
    tune(loaded)  # the same kernels: those that were faster
    with torch.no_grad():
        torch.testing.assert_close(speak(loaded, speech), speak(model, speech), rtol=1e-4, atol=1e-4)


def test_a_batch_without_speech_gives_every_parameter_of_the_talker_a_gradient_of_zero():
    model = make_model().train()
    wanted = make_model()(IDS, labels=IDS).loss
    out = losses_of(model, make_batch(IDS), {"speech": 1.0})
    assert torch.equal(out.total, wanted) and "speech" not in out.losses and not out.details
    out.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.talker.parameters())
    # A batch without speech where only speech is learnt.
    model.zero_grad(set_to_none=True)
    out = losses_of(model, make_batch(IDS, NO_LABELS), SPEECH)
    assert out.total == 0
    out.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.talker.parameters())
    # A Talker that is not asked for is not computed.
    called: list[int] = []
    model.talker.register_forward_hook(lambda *_: called.append(1))
    losses_of(model, make_batch(IDS))
    assert called == []


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_checkpointing_reaches_the_talkers_blocks_and_changes_nothing(mode):
    grads = []
    for on in (False, True):
        model = make_model(dtype=torch.float32, dropout=0.1).train()
        if on:
            activation_checkpointing.enable(model, mode)
            assert all("forward" in block.__dict__ for block in model.talker.layers)
        torch.manual_seed(0)
        speak(model, speech_of(model)).backward()
        grads.append([p.grad for p in model.talker.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_compilation_reaches_the_talkers_blocks():
    model = make_model()
    compilation.apply(model, compilation.CompileChoice("blocks", "as asked"))
    assert all(block._compiled_call_impl is not None for block in model.talker.layers)
    compilation.undo(model)


def test_low_precision_is_near_and_the_random_numbers_are_torchs():
    model = make_model(dtype=torch.float32)
    speech = speech_of(model)
    wanted = speak(model, speech)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(speak(model, speech), wanted, rtol=0.03, atol=0)
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = speak(model, speech)
    assert speak(model, speech) != first
    torch.set_rng_state(state)
    assert torch.equal(speak(model, speech), first)


def test_a_fitted_pair_is_learnt():
    model = make_model(dtype=torch.float32, code_corruption=0.0, conditioning_dropout=0.0).train()
    speech = speech_of(model)
    optimizer = torch.optim.AdamW(model.talker.parameters(), lr=1e-2)
    first = last = speak(model, speech)
    for _ in range(60):
        optimizer.zero_grad()
        last = speak(model, speech)
        last.backward()
        optimizer.step()
    assert last < 0.1 * first
