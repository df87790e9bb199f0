"""What is compared: variants of μOmni's decoding, the KV cache, attention, and peers on the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from muomni.bench.decoding.case import BASELINE, Implementation, InferCase, case_name
from muomni.bench.decoding.compare import Group, Reference
from muomni.bench.decoding.models import Files, Form, Weights, write_task
from muomni.bench.process import RefusedError
from muomni.config import ThinkerConfig
from muomni.errors import ConfigError

# The setting of the design's target for the KV cache.
CACHE_PROMPT, CACHE_NEW = 512, 100
# A comparison without a cache that takes longer than this is made only where it is required.
_MOST_SECONDS = 120.0
_GUESSED_FLOPS = 1e11
_JUDGED_ROWS, _FEW_JUDGED_ROWS = 16, 2
_LARGE = 200_000_000
# More prompts than rows: a call must not meet prompts that the engine still holds.
_SPARE_PROMPTS = 8


@dataclass(frozen=True)
class Plan:
    """The model, prompts and threads of all comparisons.

    Attributes:
        thinker: the shape.
        files: the model.
        work: folder for what is written on the way.
        prompt, new: tokens of each row.
        threads: of every case.
    """

    thinker: ThinkerConfig
    files: Files
    work: Path
    prompt: int
    new: int
    threads: int

    @property
    def weights(self) -> Weights:
        """What the model's folder holds."""
        return "int8" if self.files.is_int8 else "fp32"

    def task(self, rows: int, prompt: int | None = None, new: int | None = None) -> str:
        """The file with prompts for so many rows, written once."""
        from muomni.api.model import MuOmni

        prompt, new = prompt or self.prompt, new or self.new
        path = self.work / f"task-{rows}-{prompt}-{new}.json"
        if not path.exists():
            model = MuOmni.from_pretrained(self.files.folder, device="cpu")
            write_task(model, path, 2 * rows + _SPARE_PROMPTS, prompt, new)
        return str(path)

    def reference(self) -> Reference:
        """The fp32 folder; of large models few rows are judged, since that takes long."""
        few = self.thinker.num_parameters() > _LARGE
        rows = _FEW_JUDGED_ROWS if few else _JUDGED_ROWS
        return Reference(str(self.files.folder), str(self.work / "forced.npz"), rows)

    def case(self, name: str, task: str, weights: Weights = "fp32", batch: int = 1, **more: Any) -> InferCase:
        """A case of μOmni."""
        folder = self.files.form("int8") if weights == "int8" else self.files.folder
        fields = {"name": name, "model": str(folder), "task": task, "weights": weights, "batch": batch}
        return InferCase.model_validate({**fields, "threads": self.threads, **more})


def variants(plan: Plan, batch: int) -> Group:
    """Weights, runners, and steps compiled or not; the baseline is what a user without any of them has."""
    task = plan.task(batch)
    cases = (
        plan.case("fp32 eager", task, batch=batch, runner="eager"),
        plan.case("int8 eager", task, "int8", batch, runner="eager"),
        plan.case("fp32 compiled", task, batch=batch, runner="compiled"),
        plan.case("int8 compiled", task, "int8", batch, runner="compiled"),
        plan.case("fp32", task, batch=batch),
        plan.case("bf16", task, "bf16", batch),
        plan.case("int8", task, "int8", batch),
    )
    return Group(f"variants, batch {batch}", cases)


def kv_cache(plan: Plan, rounds: int, required: bool) -> Group | None:
    """The cache off against on, eager and with what the model takes by itself.

    Args:
        plan: the model.
        rounds: that will be taken.
        required: otherwise None is returned for a comparison that takes too long or does not fit into the context.
    """
    prompt, new = CACHE_PROMPT, CACHE_NEW
    if not required:
        matrices = plan.thinker.num_parameters() - plan.thinker.vocab_size * plan.thinker.hidden_size
        seconds = 2 * matrices * new * (prompt + new / 2) / _GUESSED_FLOPS
        if seconds * (rounds + 1) > _MOST_SECONDS or prompt + new > plan.thinker.max_position_embeddings:
            return None
    task = plan.task(1, prompt, new)
    cases = (
        plan.case(case_name({"cache": "off"}), task, cache="off"),
        plan.case(case_name({"runner": "eager"}), task, runner="eager"),
        plan.case(BASELINE, task),
    )
    return Group(f"KV cache, {prompt} + {new} tokens", cases)


def attention_backends(plan: Plan) -> Group:
    """Backends of eager steps."""
    task = plan.task(1)
    cases = tuple(
        plan.case(f"attention {name}", task, runner="eager", attention=name) for name in ("sdpa", "reference", "flex")
    )
    return Group("attention backends, fp32 eager", cases)


def peers(
    plan: Plan,
    weights: Weights,
    batch: int,
    on_update: Callable[[str], None],
    implementations: Sequence[Implementation] = get_args(Implementation),
) -> Group:
    """μOmni beside others on the same weights and prompts; the baseline is llama.cpp where it is installed.

    Args:
        plan: the model and its prompts.
        weights: of all cases.
        batch: rows.
        on_update: called with what is going on.
        implementations: besides μOmni.
    """
    task = plan.task(batch)
    unmeasured: dict[str, str] = {}
    cases: list[InferCase] = []
    for name, implementation, form, cache in _PEERS[weights]:
        if implementation not in implementations:
            continue
        on_update(f"writing the model for {name}")
        try:
            model = plan.files.form(form)
        except RefusedError as error:
            unmeasured[name] = error.reason
            continue
        fields = {"name": name, "implementation": implementation, "model": str(model), "cache": cache}
        common = {"task": task, "weights": weights, "batch": batch, "threads": plan.threads}
        cases.append(InferCase.model_validate(fields | common))
    if weights == "bf16":
        unmeasured["ctranslate2 bf16"] = "it has no bf16 on CPUs"
    cases.insert(1, plan.case(f"muomni {weights}", task, weights, batch))
    return Group(f"peers, {weights}, batch {batch}", tuple(cases), unmeasured)


# Name, implementation, form of the model, cache.
_PEERS: dict[Weights, tuple[tuple[str, str, Form, str], ...]] = {
    "int8": (
        ("llama.cpp Q8_0", "llama.cpp", "gguf-q8_0", "on"),
        ("ctranslate2 int8", "ctranslate2", "ct2-int8", "on"),
        ("transformers int8", "transformers", "hf", "on"),
    ),
    "fp32": (
        ("llama.cpp f32", "llama.cpp", "gguf-f32", "on"),
        ("ctranslate2 f32", "ctranslate2", "ct2-float32", "on"),
        ("transformers", "transformers", "hf", "on"),
        ("transformers static", "transformers", "hf", "static"),
    ),
    "bf16": (
        ("llama.cpp bf16", "llama.cpp", "gguf-bf16", "on"),
        ("transformers bf16", "transformers", "hf", "on"),
    ),
}


def batches_of(text: str, option: str = "--batch") -> Sequence[int]:
    """`1,4,16` as numbers.

    Args:
        text: the option's value.
        option: for the message.

    Raises:
        ConfigError: it is something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 5 and int(part) for part in parts):
        raise ConfigError(f"{option} {text:.40}: must be whole numbers from 1 to 9999, such as 1,4,16")
    return [int(part) for part in parts]


def weights_of(text: str) -> Sequence[Weights]:
    """`int8,fp32,bf16` as a list.

    Raises:
        ConfigError: it is something else.
    """
    known: dict[str, Weights] = {weights: weights for weights in get_args(Weights)}
    parts = text.split(",")
    if any(part not in known for part in parts):
        raise ConfigError(f"--weights {text}: there are {', '.join(known)}")
    return [known[part] for part in parts]
