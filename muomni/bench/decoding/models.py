"""What decoding is measured on: a model's folder, the same weights in the peers' formats, and prompts."""

import itertools
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from muomni.bench.process import CaseProcess
from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import ConfigError, UserError

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.data.text.tokenizer import Tokenizer

Weights = Literal["fp32", "bf16", "int8"]
Form = Literal["int8", "hf", "gguf-f32", "gguf-bf16", "gguf-q8_0", "ct2-int8", "ct2-float32"]

# Bytes of one weight as it is read in a step; Q8_0 of llama.cpp has one fp16 scale for 32 weights.
BYTES: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "q8_0": 34 / 32}
NOT_INSTALLED = "is not installed: pip install 'muomni[bench]'"
_PACKAGES = {"hf": ["transformers"], "gguf": ["llama_cpp", "gguf"], "ct2": ["ctranslate2", "transformers"]}
_TRAINED_ENTRIES = 300
_LOGIT_SPREAD = 3.0
_WORDS = (
    *("a", "the", "of", "and", "to", "in", "is", "it", "you", "that", "was", "for", "on"),
    *("are", "with", "as", "be", "at", "one", "have", "this", "from", "or", "had", "by"),
)


def streamed_weights(thinker: ThinkerConfig) -> int:
    """Weights that one decode step reads: all matrices of the blocks and the head, but not the embedding's rows."""
    embedding = thinker.vocab_size * thinker.hidden_size
    return thinker.num_parameters() - (0 if thinker.tie_word_embeddings else embedding)


def make_model_folder(config: OmniConfig, folder: Path) -> None:
    """Random weights and a tokenizer for all of its vocabulary; what is there already is kept."""
    from muomni.api.model import MuOmni

    if (folder / "config.json").is_file():
        return
    model = MuOmni.from_config(config, device="cpu", seed=0, tokenizer=full_tokenizer(config.thinker.vocab_size))
    _enliven(model)
    model.save_pretrained(folder)


def _enliven(model: "MuOmni") -> None:
    """Draws weights that decode to varied tokens.

    New weights repeat the last token for ever: their blocks add little to its embedding. Here blocks keep the
    size of what they read, and the last norm spreads the logits as widely as those of trained models.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    thinker = model.thinker
    with torch.no_grad():
        for parameter in thinker.layers.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=draw)
        head = thinker.lm_head.weight
        thinker.norm.weight.fill_(_LOGIT_SPREAD / float(head.std()) / head.shape[1] ** 0.5)


def full_tokenizer(vocab_size: int) -> "Tokenizer":
    """A byte-level BPE with exactly this many entries: those of a tiny training, then merges of any two entries.

    With an entry for every id, what a random model says costs as much to turn into text as what a trained one says.
    """
    import tokenizers

    from muomni.data.text.tokenizer import Tokenizer

    trained = Tokenizer.train([" ".join(_WORDS)], min(_TRAINED_ENTRIES, vocab_size))
    values = json.loads(trained.backend.to_str())
    entries, merges = values["model"]["vocab"], values["model"]["merges"]
    special = {token["content"] for token in values["added_tokens"]}
    plain = [name for name in entries if name not in special]
    for left, right in itertools.product(plain, repeat=2):
        if len(entries) == vocab_size:
            break
        if left + right not in entries:
            entries[left + right] = len(entries)
            merges.append([left, right])
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)), trained.chat_template, trained.config)


def make_prompts(model: "MuOmni", count: int, length: int) -> tuple[list[str], list[list[int]]]:
    """Texts whose chat prompts have exactly `length` tokens each, all different, and those tokens.

    Raises:
        UserError: the turns of a chat alone are longer.
    """
    texts, ids = [], []
    for row in range(count):
        draw = random.Random(row)
        text = draw.choice(_WORDS)
        encoded = model.encode(text)
        for _ in range(64 * length):
            if len(encoded) >= length:
                break
            longer = text + draw.choice((" ", ", ", "")) + draw.choice(_WORDS)
            candidate = model.encode(longer)
            if len(candidate) <= length:
                text, encoded = longer, candidate
        if len(encoded) != length:
            raise UserError(f"--prompt-len {length}: no chat prompt of this length was found; give more tokens")
        texts.append(text)
        ids.append(encoded)
    return texts, ids


def write_task(model: "MuOmni", path: Path, rows: int, prompt: int, new: int) -> None:
    """Writes the prompts that every case is given."""
    context = model.config.thinker.max_position_embeddings
    if prompt + new > context:
        raise UserError(f"{prompt} prompt tokens and {new} new ones do not fit into the model's context of {context}")
    texts, ids = make_prompts(model, rows, prompt)
    path.write_text(json.dumps({"texts": texts, "ids": ids, "new": new}), encoding="utf-8")


def write_form(folder: Path, target: Path, form: str) -> None:
    """Writes the model of `folder` in another form.

    Args:
        folder: with our model.
        target: the folder or file that is made.
        form: `int8`, our own folder with int8 weights; `hf`, a Qwen3 folder; `gguf-f32`, `gguf-bf16` or `gguf-q8_0`
            for llama.cpp; `ct2-int8` or `ct2-float32`, made by CTranslate2's converter from the Qwen3 folder that
            lies beside `target`.

    Raises:
        ConfigError: what reads or writes this form is not installed, or does not know this model.
    """
    program, _, kind = form.partition("-")
    missing = [name for name in _PACKAGES.get(program, ()) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} {NOT_INSTALLED}")
    if program == "ct2":
        _convert_ct2(target.with_name("hf"), target, kind)
        return
    from muomni.api.model import MuOmni

    model = MuOmni.from_pretrained(folder, device="cpu")
    if program == "int8":
        model.quantize("int8")
        model.save_pretrained(target)
    elif program == "hf":
        model.export_hf(target)
    else:
        from muomni.formats.gguf import write_gguf

        write_gguf(model, target, cast("Any", kind))


def _convert_ct2(source: Path, target: Path, kind: str) -> None:
    from ctranslate2.converters import TransformersConverter

    try:
        TransformersConverter(str(source)).convert(str(target), quantization=kind)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"CTranslate2 does not convert this model: {error}") from None


class Written:
    """`write_form` for `accel.measurements.worker`: in a process of its own, so that memory and chatter end with it."""

    def __init__(self, folder: str, target: str, form: str) -> None:
        write_form(Path(folder), Path(target), form)
        self.first: dict[str, Any] = {}

    def turn(self) -> dict[str, Any]:
        """Nothing: all is done."""
        return {}


class Files:
    """The model of `folder` in other forms, written into `work` when first asked for; see `write_form`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self._work = work

    @property
    def is_int8(self) -> bool:
        """Whether the folder itself holds int8 weights."""
        from muomni.formats.pretrained import read_quantization

        return read_quantization(self.folder) == "int8"

    def form(self, form: Form) -> Path:
        """The folder or file of this form.

        Raises:
            RefusedError: it cannot be written here, and why.
        """
        if form.startswith("ct2"):
            self.form("hf")
        if form == "int8" and self.is_int8:
            return self.folder
        target = self._work / (f"{form}.gguf" if form.startswith("gguf") else form)
        if not target.exists():
            partial = target.with_name(f".partial-{target.name}")
            case = {"folder": str(self.folder), "target": str(partial), "form": form}
            with CaseProcess("decoding.models:Written", form, case):
                partial.rename(target)
        return target
