"""The bench of inference: real processes on a model of no size; what it says of tokens, speed and what is missing."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from muomni.bench.decoding import comparisons
from muomni.bench.decoding.case import InferCase, read_task
from muomni.bench.decoding.compare import Group, Reference, _noise, compare_decoding
from muomni.bench.decoding.comparisons import Plan, batches_of, weights_of
from muomni.bench.decoding.fidelity import Judge, fidelity
from muomni.bench.decoding.models import Files, full_tokenizer, make_model_folder, streamed_weights, write_form
from muomni.bench.decoding.subject import InferSubject
from muomni.bench.process import CaseProcess, RefusedError
from muomni.config import OmniConfig, ThinkerConfig, preset
from muomni.errors import ConfigError, MuOmniError, UserError

PROMPT, NEW = 24, 6


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    small = preset("nano").thinker.model_dump() | {"vocab_size": 512}
    thinker = ThinkerConfig(**small)
    make_model_folder(OmniConfig(thinker=thinker), work / "model")
    return Plan(thinker, Files(work / "model", work), work, PROMPT, NEW, threads=1)


def eager(plan: Plan, name: str = "eager", **more: Any) -> InferCase:
    return plan.case(name, plan.task(2), **{"runner": "eager", **more})


def test_cases_take_turns_and_their_tokens_are_judged(plan):
    said: list[str] = []
    cases = (eager(plan), eager(plan, "two rows", batch=2))
    gpu = eager(plan, "not here").replace(implementation="llama.cpp", model="no such file")
    found = compare_decoding(Group("a group", (*cases, gpu)), plan.thinker, plan.reference(), 2, said.append)
    one, two = found.cases
    assert one.ratio == 1 and one.verdict == "no difference"
    assert two.agreement == one.agreement == 1 and two.worst_gap == 0
    assert one.top1 == 1 and one.kl == pytest.approx(0, abs=1e-9)
    assert min(one.decode_per_s, one.call_per_s, one.first_token_ms, one.peak_mib, found.bandwidth) > 0
    assert one.gb_per_s == pytest.approx(one.decode_per_s * streamed_weights(plan.thinker) * 4 / 1e9)
    assert two.gb_per_s == pytest.approx(two.decode_per_s / 2 * streamed_weights(plan.thinker) * 4 / 1e9)
    assert "not here" in found.unmeasured
    assert said[-1] == "round 2 of 2"
    json.dumps(found.as_dict())


def test_nothing_to_measure_is_an_error_that_says_why(plan):
    case = eager(plan, "missing").replace(implementation="llama.cpp", model="no such file")
    with pytest.raises(MuOmniError, match=r"nothing could be measured. missing: .*"):
        compare_decoding(Group("a group", (case,)), plan.thinker, plan.reference(), 1)


def test_the_judge_finds_wrong_tokens_and_how_wrong_they_are(plan, tmp_path):
    task = read_task(eager(plan))
    judge = Judge(str(plan.files.folder), task.ids[0], NEW, str(tmp_path / "forced.npz"))
    right = judge.first["tokens"]
    assert judge.turn(task.ids, [right]) == {"agreement": 1.0, "equal_rows": 1, "rows": 1, "worst_gap": 0.0}
    wrong = [*right[:-1], (right[-1] + 1) % plan.thinker.vocab_size]
    marks = judge.turn(task.ids * 2, [wrong, right])
    assert marks["agreement"] == pytest.approx(1 - 1 / (2 * NEW))
    assert marks["equal_rows"] == 1 and marks["worst_gap"] > 0


def test_fidelity_sees_small_and_large_errors(plan, tmp_path):
    forced = str(tmp_path / "forced.npz")
    task = read_task(eager(plan))
    Judge(str(plan.files.folder), task.ids[0], NEW, forced)
    logits = np.load(forced)["logits"]
    same = fidelity(lambda ids, count: logits, forced)
    assert same == {"top1": 1.0, "kl": 0.0, "worst": 0.0}
    shifted = fidelity(lambda ids, count: logits + 1, forced)  # the same distribution
    assert shifted["kl"] == pytest.approx(0, abs=1e-6) and shifted["worst"] == pytest.approx(1)
    other = fidelity(lambda ids, count: -logits, forced)
    assert other["kl"] > 0.1 and other["top1"] < 1
    assert fidelity(lambda ids, count: None, forced) is None


@pytest.mark.parametrize("fields", [{}, {"batch": 2}, {"cache": "off"}, {"weights": "int8"}, {"weights": "bf16"}])
def test_every_own_way_decodes_the_prompts(plan, fields):
    case = eager(plan, **fields)
    subject = InferSubject(case.replace(forced=""))
    tokens = subject.first["tokens"]
    assert np.shape(tokens) == (case.batch, NEW)
    turn = subject.turn()
    assert 0 < turn["prefill_s"] < turn["call_s"] and turn["public_s"] is None
    if not {"weights"} & fields.keys():
        judge = Judge(str(plan.files.folder), read_task(case).ids[0], NEW, str(plan.work / "forced-test.npz"))
        assert tokens[0] == judge.first["tokens"]


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_compiled_steps_are_there_before_anything_is_timed(plan, monkeypatch, weights):
    monkeypatch.setattr("muomni.accel.compile.blocks.what_is_missing", lambda _: None)
    monkeypatch.setattr("muomni.infer.runners.compiled._without_running", lambda step, inputs: step)
    case = eager(plan, weights=weights, runner="compiled", batch=2)
    subject = InferSubject(case)
    runner = subject._backend._runner  # type: ignore[attr-defined]
    compiles = dict(runner.compiles)
    assert {bucket.kind for bucket in compiles} == {"decode", "prefill"}
    assert subject.first["tokens"] == InferSubject(eager(plan, weights=weights, batch=2)).first["tokens"]
    assert subject.turn()["decode_s"] > 0
    assert runner.compiles == compiles and runner.eager_steps == 0 and not runner.faults
    assert "CompiledRunner 1 steps compiled (decode of 2 rows over 30 positions)" in subject.first["settings"]


def test_where_nothing_compiles_the_case_is_refused(plan, monkeypatch):
    monkeypatch.setattr("muomni.accel.compile.blocks.what_is_missing", lambda _: "no C++ compiler is on the path")
    with pytest.raises(ConfigError, match="the compiled runner cannot be had: no C"):
        InferSubject(eager(plan, runner="compiled"))


def test_compiling_is_compared_on_and_off(plan):
    names = [case.name for case in comparisons.variants(plan, 1).cases]
    assert {"fp32 eager", "fp32 compiled", "int8 eager", "int8 compiled"} <= set(names)


def test_the_public_call_is_timed_where_the_model_chooses_the_runner(plan):
    subject = InferSubject(eager(plan, runner="auto"))
    turn = subject.turn()
    assert turn["public_s"] > 0
    assert subject.turn(calls=False)["public_s"] is None


def test_prompts_have_the_length_asked_for_and_differ(plan):
    values = json.loads((plan.work / plan.task(2)).read_text())
    assert {len(ids) for ids in values["ids"]} == {PROMPT}
    assert len({tuple(ids) for ids in values["ids"]}) == len(values["ids"]) >= 12
    with pytest.raises(UserError, match="do not fit"):
        plan.task(1, 250, 50)
    with pytest.raises(UserError, match="no chat prompt"):
        plan.task(1, 4, 4)


def test_the_tokenizer_has_an_entry_for_every_id():
    tokenizer = full_tokenizer(700)
    assert tokenizer.vocab_size == 700
    assert all(tokenizer.bytes_of(token) for token in range(700))
    text = "that for, ünï!"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_weights_read_in_a_step_leave_out_an_untied_embedding(plan):
    tied = plan.thinker
    untied = tied.model_copy(update={"tie_word_embeddings": False})
    assert streamed_weights(tied) == tied.num_parameters() == streamed_weights(untied)


def test_a_slow_comparison_is_left_out_unless_asked_for(plan):
    assert comparisons.kv_cache(plan, 5, required=False) is None  # beyond the context of nano
    with pytest.raises(UserError, match="do not fit"):
        comparisons.kv_cache(plan, 5, required=True)


def test_noise_is_said():
    case = {"case": [95.0, 104.0]}
    assert _noise(case | {"memory bandwidth": [30.0, 31.0]}, 0.0) == ""
    assert "memory bandwidth are 40% apart" in _noise(case | {"memory bandwidth": [25.0, 30.0, 37.0]}, 0.0)
    assert "others used 20%" in _noise(case, 0.2)


def test_wrong_options_are_named():
    assert batches_of("1,4") == [1, 4] and weights_of("int8,fp32") == ["int8", "fp32"]
    for wrong in ("", "0", "1,a"):
        with pytest.raises(ConfigError, match="--batch"):
            batches_of(wrong)
    with pytest.raises(ConfigError, match="--weights"):
        weights_of("int4")


def test_what_is_not_installed_is_said(plan, monkeypatch, tmp_path):
    monkeypatch.setattr("muomni.bench.decoding.models.find_spec", lambda name: None)
    for form in ("gguf-f32", "ct2-int8", "hf"):
        with pytest.raises(ConfigError, match=r"is not installed: pip install 'muomni\[bench\]'"):
            write_form(plan.files.folder, tmp_path / "target", form)


@pytest.mark.parametrize("module", ["llama_cpp", "ctranslate2", "transformers"])
def test_a_peer_that_is_not_installed_is_refused(plan, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    implementation = {"llama_cpp": "llama.cpp"}.get(module, module)
    case = eager(plan).replace(implementation=implementation, model="x")
    with pytest.raises(ConfigError, match="not installed"):
        InferSubject(case)


def test_peers_that_cannot_be_had_are_listed_and_the_others_compared(plan, monkeypatch):
    def form(self, name):
        raise RefusedError(name, "not here")

    monkeypatch.setattr(Files, "form", form)
    group = comparisons.peers(plan, "fp32", 1, lambda _: None)
    assert [case.name for case in group.cases] == ["muomni fp32"]
    assert group.unmeasured["llama.cpp f32"] == "not here"


def test_a_case_that_dies_shows_what_it_said(tmp_path):
    case = {"model": str(tmp_path / "nothing"), "prompt": [1], "new": 1, "forced": "x"}
    with pytest.raises(RefusedError, match="no run or model"):
        CaseProcess("decoding.fidelity:Judge", "the judge", case)
    with pytest.raises(MuOmniError, match=r"(?s)case 'bad' ended with exit code 1:.*TypeError"):
        CaseProcess("decoding.bandwidth:Bandwidth", "bad", {"no": "such"})


def reference_tokens(plan: Plan) -> tuple[Reference, list[int]]:
    task = read_task(eager(plan))
    reference = plan.reference()
    return reference, Judge(reference.model, task.ids[0], NEW, reference.forced).first["tokens"]


@pytest.mark.parametrize(
    ("weights", "module"),
    [("fp32", "llama_cpp"), ("int8", "llama_cpp"), ("fp32", "ctranslate2"), ("fp32", "transformers")],
)
def test_peers_say_what_the_reference_says(plan, weights, module):
    pytest.importorskip(module)
    pytest.importorskip("gguf")
    reference, expected = reference_tokens(plan)
    implementation = {"llama_cpp": "llama.cpp"}.get(module, module)
    group = comparisons.peers(plan, weights, 2, lambda _: None, [implementation])
    for case in group.cases:
        if case.implementation == "muomni":
            continue
        subject = InferSubject(case.replace(forced=reference.forced))
        close = subject.first["fidelity"]
        if weights == "fp32":
            assert subject.first["tokens"][0] == expected
            assert close["top1"] == 1 and close["worst"] < 0.02
        else:
            assert close["kl"] < 0.1
        turn = subject.turn()
        assert turn["prefill_s"] > 0 and turn["decode_s"] > 0
