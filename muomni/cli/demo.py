"""`muomni demo`: the whole way on this machine, from text to a model that answers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from muomni.errors import TrainingError, UserError
from muomni.files import follow

PROMPTS = ("The", "Return the", "This module")
QUESTIONS = ("What does os.path.join() do?", "What does textwrap.dedent() do?")


def command(
    data: Annotated[
        Path | None, typer.Option(help="Any text, jsonl or parquet instead of Python's own documentation.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder; an earlier demo in it is replaced.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=20, help="Optimizer steps.")] = 1000,
) -> None:
    """Make a tokenizer, train a small model on real text, stop and resume it, and talk with it.

    Example: muomni demo --data stories.txt
    """
    began = time.perf_counter()
    if data is not None and not data.exists():
        raise UserError(f"--data {data}: no such file or folder")
    _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / ".demo").touch()
    corpus = data if data is not None else _python_docs(out)
    changes = [f"max_steps={steps}", f"schedule.warmup_steps={min(50, steps // 10)}"]
    _say(f"1. train a tokenizer and a model on {corpus}, and stop the run on the way with Ctrl-C")
    training = _training(out, corpus, changes)
    while training.poll() is None and _last_step(out) < steps // 3:
        time.sleep(0.2)
    if training.poll() is None:
        training.send_signal(signal.SIGINT)
    if _wait_for(training, 0, 130):
        _say("2. resume: the run goes on as if it had never stopped")
        _wait_for(_training(out, corpus, changes, "--resume"), 0)
    else:
        _say("2. the run was over before it could be stopped; nothing to resume")
    _say("3. how good is it?")
    _report(out)
    _say("4. talk with it")
    _talk(out, ask=data is None)
    _say(f"done in {(time.perf_counter() - began) / 60:.1f} min")
    print(f"model        {out / 'best'}\nloss curve   {out / 'loss.png'}\nlog          {out / 'metrics.jsonl'}")
    print(f"go on        muomni chat {out}\n             muomni generate {out} --raw 'The'")


def _clear(out: Path) -> None:
    """Removes an earlier demo, and only that."""
    import shutil

    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / ".demo").is_file():
        raise UserError(f"{out} holds files that no demo made; --out names another folder")
    shutil.rmtree(out)


def _python_docs(out: Path) -> Path:
    from muomni.data.sources.python_docs import write_python_docs

    corpus = out / "data" / "python_docs.jsonl"
    size = write_python_docs(corpus)
    _say(f"0. wrote {size / 1e6:.1f} MB of Python's own documentation to {corpus}")
    return corpus


def _training(out: Path, corpus: Path, changes: list[str], *more: str) -> subprocess.Popen[bytes]:
    """A `muomni train` process of its own, so that it can be stopped as a person would."""
    sets = [part for change in changes for part in ("--set", change)]
    arguments = ["demo", "--data", str(corpus), "--out", str(out), *sets, *more]
    return subprocess.Popen([sys.executable, "-m", "muomni", "train", *arguments])


def _wait_for(training: subprocess.Popen[bytes], *expected: int) -> int:
    code = training.wait()
    if code == UserError.exit_code:
        raise UserError("the demo ends here: see the message of the training above")
    if code not in expected:
        raise TrainingError(f"training ended with exit code {code}; see above")
    return code


def _last_step(out: Path) -> int:
    from muomni.training.reporting.metrics_log import METRICS, read_lines

    lines = read_lines(out / METRICS)
    return int(lines[-1]["step"]) if lines else 0


def _report(out: Path) -> None:
    """Validation loss beside the bigram baseline on the same rows, and the speed."""
    from muomni.config import load_recipe
    from muomni.data import PackedDataset, Tokenizer, prepare
    from muomni.eval.bigram_baseline import Bigram
    from muomni.training.reporting.metrics_log import METRICS, read_lines

    recipe = load_recipe(str(out / "recipe.json"))
    tokenizer = Tokenizer.load(follow(out / "last"))
    data = prepare(recipe.data, tokenizer)
    train = PackedDataset(data.train, recipe.data.seq_len, recipe.seed, shuffle=False)
    val = PackedDataset(data.val, recipe.data.seq_len, recipe.seed, shuffle=False)
    bigram, k = Bigram(train, tokenizer.vocab_size).bits_per_byte(val, tokenizer.byte_lengths(), recipe.eval.max_rows)
    lines = read_lines(out / METRICS)
    best = min((line for line in lines if line["kind"] == "val"), key=lambda line: float(line["loss"]))
    speeds = sorted(line["tokens_per_s"] for line in lines if line["kind"] == "speed")
    result: dict[str, Any] = {
        "validation_loss": best["loss"],
        "model_bits_per_byte": best["bits_per_byte"],
        "bigram_bits_per_byte": bigram,
        "gain_bits_per_byte": bigram - best["bits_per_byte"],
        "tokens_per_s": speeds[len(speeds) // 2],
    }
    (out / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"validation   {best['loss']:.3f} nats per token, {best['bits_per_byte']:.3f} bits per byte")
    print(f"bigram       {bigram:.3f} bits per byte (same tokens, same rows, smoothing k = {k:g})")
    print(f"gain         {result['gain_bits_per_byte']:.3f} bits per byte")
    print(f"speed        {result['tokens_per_s']:,.0f} tokens/s in training (median)")


def _talk(out: Path, ask: bool) -> None:
    from muomni import MuOmni

    model = MuOmni.from_pretrained(str(out))
    for prompt in PROMPTS:
        reply = model.complete(prompt, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=1)
        print(f"> {prompt}\n{prompt}{reply}\n")
    for question in QUESTIONS if ask else ():
        print(f"user: {question}\nmodel: {model.chat(question, max_new_tokens=64, temperature=0)}\n")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
