"""The one list of optimizations. The bench, auto-decline, `docs/claims.md` and the README's table all read it.

A technique is turned off and on by fields of the case that measures it (`bench.training.case.TrainCase`,
`bench.decoding.case.InferCase`, `bench.speech.SpeechCase`). Where it is also the value of a setting whose `auto` may
take it, `Setting` says what `auto` takes instead on a machine where `muomni bench` measured it to lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# exact: bit by bit; rounding: sums in another order; approximate: other numbers, within a bound.
EquivalenceClass = Literal["exact", "rounding", "approximate", "another optimizer"]
MeasuredBy = Literal["training step", "decode", "speculation", "speech"]
Part = Literal["train", "infer", "speech"]
_PARTS: dict[MeasuredBy, Part] = {
    "training step": "train",
    "decode": "infer",
    "speculation": "infer",
    "speech": "speech",
}


@dataclass(frozen=True)
class Setting:
    """The setting that turns a technique on.

    Attributes:
        name: a recipe's key, or `runner` (of decoding) and `speech.runner` (of the Talker).
        value: its value with the technique.
        instead: what `auto` takes where the technique lost; None: `auto` never takes the technique.
        is_default: `auto` takes the technique by itself, so that a recipe need not name it where it won.
    """

    name: str
    value: str
    instead: str | None = None
    is_default: bool = False


@dataclass(frozen=True)
class Technique:
    """One optimization.

    Attributes:
        key: names it in reports and in stored verdicts.
        title: its name in tables and logs.
        measured_by: what is timed.
        equivalence: class that its results are held to.
        off, on: what is done without and with it, in words.
        off_settings, on_settings: fields of the measured case without and with it; of one `family` all `off_settings`
            are equal.
        family: techniques that are measured together; the key if empty.
        claim: what is usually promised of it, in words.
        claimed_speed: the least speed ratio on / off that the claim promises; None where it promises none.
        claimed_memory: the largest memory ratio on / off that it promises, of the weights on disk where those differ
            and of the peak otherwise; None where it promises none.
        claim_rows: keys of the report's rows that measure the claim, for `docs/claims.md`, which shows the first that
            was measured; empty: not on that page.
        setting: that turns it on; None where it is always on, or not the user's to choose.
        usage: what the user types, as Markdown; empty: not in the README.
        level: `quick` reports measure it, or only `full` ones, or only the tables of `muomni bench train`.
    """

    key: str
    title: str
    measured_by: MeasuredBy
    equivalence: EquivalenceClass
    off: str
    on: str
    off_settings: Mapping[str, Any] = field(default_factory=dict)
    on_settings: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    claim: str = ""
    claimed_speed: float | None = None
    claimed_memory: float | None = None
    claim_rows: tuple[str, ...] = ()
    setting: Setting | None = None
    usage: str = ""
    level: Literal["quick", "full", "table"] = "full"

    @property
    def part(self) -> Part:
        """The part of the bench that measures it."""
        return _PARTS[self.measured_by]


_PACKED = {"documents": 100}
_UPDATES = {"updates": True}

# fmt: off
_TRAINING = (
    Technique(
        "allocator-retain", "freed memory retained", "training step", "exact",
        off="given back to the system", on="kept for the next step",
        off_settings={"allocator": "system"}, on_settings={"allocator": "retain"},
        claim="fewer page faults",
        setting=Setting("allocator", "retain", instead="system", is_default=True),
        usage='nothing where there is no arena, or `"allocator": "retain"`',
    ),
    Technique(
        "allocator-arena", "arena for large tensors", "training step", "exact",
        off="in the C library's heap", on="in a region of their own",
        off_settings={"allocator": "retain"}, on_settings={"allocator": "arena"},
        claim="no gaps between blocks",
        setting=Setting("allocator", "arena", instead="retain", is_default=True),
        usage='nothing, or `"allocator": "arena"`', level="quick",
    ),
    Technique(
        "precision-bf16", "mixed precision, bf16", "training step", "rounding",
        off="fp32", on="bf16",
        off_settings={"precision": "fp32"}, on_settings={"precision": "bf16"}, family="precision",
        claim="2× faster, half of the memory", claimed_speed=2.0, claimed_memory=0.5,
        claim_rows=("precision-bf16", "precision-fp16"),
        setting=Setting("precision", "bf16", instead="fp32"),
        usage='nothing, or `"precision": "bf16"`', level="quick",
    ),
    Technique(
        "precision-fp16", "mixed precision, fp16", "training step", "rounding",
        off="fp32", on="fp16",
        off_settings={"precision": "fp32"}, on_settings={"precision": "fp16"}, family="precision",
        claim="2× faster, half of the memory", claimed_speed=2.0, claimed_memory=0.5,
        setting=Setting("precision", "fp16", instead="fp32"),
        usage='nothing on a GPU without bf16, or `"precision": "fp16"`',
    ),
    Technique(
        "accumulation", "gradient accumulation, 4 micro-batches", "training step", "rounding",
        off="the whole batch at once", on="a quarter at a time",
        on_settings={"accumulation": 4},
        claim="a large batch in little memory",
        usage='`"gradient_accumulation_steps": 4`', level="quick",
    ),
    Technique(
        "checkpointing-full", "gradient checkpointing, full", "training step", "exact",
        off="activations kept", on="recomputed",
        on_settings={"checkpointing": "full"}, family="checkpointing",
        claim="far less memory, 20–30% more time", claimed_speed=1 / 1.3,
        setting=Setting("gradient_checkpointing", "full"),
        usage='`"gradient_checkpointing": "full"`, `model.gradient_checkpointing_enable()`', level="quick",
    ),
    Technique(
        "checkpointing-selective", "gradient checkpointing, selective", "training step", "exact",
        off="activations kept", on="all but matrix products recomputed",
        on_settings={"checkpointing": "selective"}, family="checkpointing",
        claim="less memory, little more time",
        setting=Setting("gradient_checkpointing", "selective"),
        usage='`"gradient_checkpointing": "selective"`',
    ),
    Technique(
        "attention", "flash attention", "training step", "rounding",
        off="the plain definition", on="the chosen kernel",
        off_settings={"attention": "reference"},
        claim="2–4× faster, memory linear in context", claimed_speed=2.0,
        claim_rows=("attention-packed", "attention"),
        usage='nothing, or `"attention": "sdpa"`', level="quick",
    ),
    Technique(
        "attention-packed", "packed documents of 100 tokens", "training step", "rounding",
        off="a mask over all pairs", on="documents one by one",
        off_settings={"attention": "reference"} | _PACKED, on_settings=_PACKED,
        claim="no work between documents",
        usage="nothing",
    ),
    Technique(
        "attention-varlen", "varlen attention", "training step", "rounding",
        off="sdpa", on="varlen",
        off_settings={"attention": "sdpa"} | _PACKED, on_settings={"attention": "varlen"} | _PACKED,
        family="attention-backends",
        claim="faster on packed rows",
        setting=Setting("attention", "varlen", instead="sdpa"),
        usage='nothing on a GPU, or `"attention": "varlen"`',
    ),
    Technique(
        "attention-flash", "flash-attn package", "training step", "rounding",
        off="sdpa", on="flash-attn",
        off_settings={"attention": "sdpa"} | _PACKED, on_settings={"attention": "flash_attn"} | _PACKED,
        family="attention-backends",
        claim="2–4× faster", claimed_speed=2.0,
        setting=Setting("attention", "flash_attn"),
        usage='`"attention": "flash_attn"`',
    ),
    Technique(
        "attention-flex", "FlexAttention", "training step", "rounding",
        off="sdpa", on="FlexAttention",
        off_settings={"attention": "sdpa"} | _PACKED, on_settings={"attention": "flex"} | _PACKED,
        family="attention-backends",
        claim="flexible and fast",
        usage='`"attention": "flex"`',
    ),
    Technique(
        "cross-entropy", "linear cross-entropy in chunks", "training step", "rounding",
        off="logits of all tokens", on="in chunks",
        off_settings={"loss": "logits"}, on_settings={"loss": "chunked"}, family="cross-entropy",
        claim="no logits in memory, no slower", claimed_speed=1.0,
        usage="nothing", level="quick",
    ),
    Technique(
        "cross-entropy-torch", "F.linear_cross_entropy", "training step", "rounding",
        off="logits of all tokens", on="torch's fused loss",
        off_settings={"loss": "logits"}, on_settings={"loss": "torch"}, family="cross-entropy",
        level="table",
    ),
    Technique(
        "cross-entropy-torch-chunked", "F.linear_cross_entropy, its chunks", "training step", "rounding",
        off="logits of all tokens", on="torch's fused loss in chunks",
        off_settings={"loss": "logits"}, on_settings={"loss": "torch chunked"}, family="cross-entropy",
        level="table",
    ),
    Technique(
        "adamw-foreach", "foreach AdamW for a loop", "training step", "rounding",
        off="one weight after another", on="a few kernels",
        off_settings={"adamw": "for-loop"} | _UPDATES, on_settings={"adamw": "foreach"} | _UPDATES, family="adamw",
        level="table",
    ),
    Technique(
        "adamw-fused", "fused AdamW for a loop", "training step", "rounding",
        off="one weight after another", on="one kernel",
        off_settings={"adamw": "for-loop"} | _UPDATES, on_settings=_UPDATES, family="adamw",
        claim="faster steps",
        usage="nothing",
    ),
    Technique(
        "muon", "Muon for AdamW", "training step", "another optimizer",
        off="AdamW", on="Muon",
        off_settings=_UPDATES, on_settings={"optimizer": "muon"} | _UPDATES, family="optimizer",
        usage='`"optimizer": {"name": "muon"}`', level="table",
    ),
    Technique(
        "compile", "torch.compile of the blocks", "training step", "rounding",
        off="eager", on="compiled blocks",
        on_settings={"compile": "blocks"}, family="compile",
        claim="1.3–2× faster after a wait", claimed_speed=1.3,
        setting=Setting("compile", "blocks", instead="off"),
        usage='nothing (a trial decides), or `"compile": "blocks"`', level="quick",
    ),
    Technique(
        "compile-full", "torch.compile of the whole model", "training step", "rounding",
        off="eager", on="compiled whole",
        on_settings={"compile": "full"}, family="compile",
        claim="1.3–2× faster after a wait", claimed_speed=1.3,
        setting=Setting("compile", "full"),
        usage='`"compile": "full"`',
    ),
)

_INFERENCE = (
    Technique(
        "kv-cache", "KV cache", "decode", "rounding",
        off="the whole text each step", on="keys and values kept",
        # Both with torch's modules, so that nothing but the cache differs.
        off_settings={"cache": "off"}, on_settings={"runner": "eager"},
        claim="10× faster at 100 tokens", claimed_speed=10.0,
        claim_rows=("kv-cache",),
        usage="nothing", level="quick",
    ),
    Technique(
        "decode-step", "native or compiled decode step", "decode", "rounding",
        off="torch's modules", on="native or compiled",
        off_settings={"runner": "eager"},
        claim="2–5× faster at batch 1", claimed_speed=2.0,
        setting=Setting("runner", "native", instead="eager", is_default=True),
        usage="nothing", level="quick",
    ),
    Technique(
        "int8", "int8 weights", "decode", "approximate",
        off="fp32", on="int8",
        on_settings={"weights": "int8"},
        claim="4× smaller, faster where memory is the limit", claimed_memory=0.25,
        claim_rows=("int8",),
        usage='`model.quantize("int8")`, `muomni quantize`', level="quick",
    ),
    Technique(
        "bf16", "bf16 weights", "decode", "approximate",
        off="fp32", on="bf16",
        on_settings={"weights": "bf16"},
        claim="half the size, up to 2× faster",
    ),
    Technique(
        "batching", "batch inference", "decode", "rounding",
        off="one row", on="16 rows together",
        on_settings={"batch": 16},
        claim="many times the tokens a second",
        claim_rows=("batching",),
        usage="`model.chat_batch([...])`, `muomni generate --batch`", level="quick",
    ),
    Technique(
        "speculation", "speculative decoding", "speculation", "exact",
        off="a token a step", on="drafts verified together",
        claim="1.5–3× faster where text repeats", claimed_speed=1.5,
        usage="`speculate=True`, `--speculate`, `--draft-model RUN`", level="quick",
    ),
)

_SPEECH = (
    Technique(
        "talker-batching", "talker batching", "speech", "rounding",
        off="one sentence", on="8 sentences together",
        on_settings={"rows": 8},
        claim="many times the speech a second",
        usage="`model.say_batch([...])`, `muomni say --batch`", level="quick",
    ),
    Technique(
        "talker-native", "native talker frame", "speech", "rounding",
        off="torch's modules", on="native",
        off_settings={"runner": "eager"},
        claim="2–5× faster at batch 1", claimed_speed=2.0,
        setting=Setting("speech.runner", "native", instead="eager", is_default=True),
        usage="nothing", level="quick",
    ),
    Technique(
        "talker-int8", "int8 talker", "speech", "approximate",
        off="float", on="int8",
        on_settings={"weights": "int8"},
        claim="4× smaller, faster where memory is the limit",
        usage='`model.quantize("int8")`', level="quick",
    ),
)

# fmt: on
TECHNIQUES: tuple[Technique, ...] = (*_TRAINING, *_INFERENCE, *_SPEECH)


def measured_by(
    kind: MeasuredBy, techniques: Sequence[Technique] = TECHNIQUES, *, mode: Literal["quick", "full", "table"] = "full"
) -> tuple[Technique, ...]:
    """The techniques of one kind of measurement, in the list's order.

    Args:
        kind: what is timed.
        techniques: the list.
        mode: `quick` gives those of quick reports, `full` those of all reports, `table` all of them.
    """
    levels = {"quick": ("quick",), "full": ("quick", "full"), "table": ("quick", "full", "table")}[mode]
    return tuple(t for t in techniques if t.measured_by == kind and t.level in levels)


def readme_table(techniques: Sequence[Technique] = TECHNIQUES) -> str:
    """The README's table of techniques, as Markdown."""
    lines = [
        "| technique | instead of | usually claimed | results | what you type |",
        "|---|---|---|---|---|",
    ]
    for technique in techniques:
        if technique.usage:
            cells = (technique.title, technique.off, technique.claim or "–", technique.equivalence, technique.usage)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
