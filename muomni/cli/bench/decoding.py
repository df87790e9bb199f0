"""`muomni bench infer`: decoding, side by side on this machine."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.bench import report as bench_report

if TYPE_CHECKING:
    from muomni.bench.decoding.compare import Comparison, Decoding, Group
    from muomni.bench.decoding.comparisons import Plan
    from muomni.bench.decoding.models import Weights


def infer(
    ctx: typer.Context,
    target: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As of `bench all`; makes a report.")] = None,
    full: bench_report.Full = None,
    out: bench_report.Out = None,
    repeat: bench_report.Repeat = 1,
    shape: Annotated[str, typer.Option(help="nano, tiny, small, base (0.6b), 12m or 100m; random weights.")] = "tiny",
    model: Annotated[str | None, typer.Option(help="Measure this run or model instead of random weights.")] = None,
    prompt: Annotated[int, typer.Option("--prompt-len", min=16, help="Tokens of each prompt.")] = 64,
    new: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Tokens generated for each.")] = 128,
    batch: Annotated[str, typer.Option(help="Rows decoded together; one or several numbers.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=2, help="Turns each case takes.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every case; default: torch's choice.")] = None,
    variants: Annotated[
        bool,
        typer.Option(
            "--variants/--no-variants", help="Compare weights (fp32, bf16, int8), runners, and compiled steps."
        ),
    ] = True,
    kv_cache: Annotated[
        bool | None, typer.Option(help="Cache off against on, 512 + 100 tokens; by default where that is quick.")
    ] = None,
    attention: Annotated[bool, typer.Option(help="Compare attention backends.")] = True,
    peers: Annotated[bool, typer.Option("--peers", help="Also llama.cpp, CTranslate2 and transformers.")] = False,
    weights: Annotated[str, typer.Option(help="Of the peers' comparisons.")] = "int8,fp32,bf16",
    cold: Annotated[
        bool, typer.Option("--cold-start/--no-cold-start", help="Time `muomni generate` from start to first text.")
    ] = True,
    work: Annotated[
        Path | None, typer.Option("--work-dir", help="Keep what is written here; default: nowhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Decoding. With MODEL, --quick or --full a report as `bench all` makes it.

    Otherwise tables of runners, weights, batch sizes, KV cache, attention; with --peers beside other libraries.
    Cases run in processes of their own and take turns. Tokens are compared with the fp32 model, eager, one row at a
    time. Ends with one JSON line. Example: muomni bench infer --shape 12m --batch 1,16 --peers
    """
    if bench_report.wants_report(ctx, target is not None or full is not None):
        return bench_report.report(("infer",), "infer", target, full, out, repeat)
    from rich.console import Console

    from muomni import __version__
    from muomni.bench.decoding.cold_start import first_text_s
    from muomni.bench.decoding.compare import compare_decoding
    from muomni.bench.decoding.comparisons import batches_of, weights_of

    batches, peer_weights = batches_of(batch), weights_of(weights)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muomni-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        plan = _plan(shape, model, prompt, new, threads, work, say)
        result: dict[str, Any] = {
            "model": model or shape,
            "parameters": plan.thinker.num_parameters(),
            "prompt": prompt,
            "new": new,
            "threads": plan.threads,
            "muomni": __version__,
            "comparisons": [],
        }
        chosen = (batches if variants else (), kv_cache, attention, peer_weights if peers else ())
        for group in _groups(plan, *chosen, batches, rounds, say):
            comparison = compare_decoding(group, plan.thinker, plan.reference(), rounds, say)
            result["comparisons"].append(comparison.as_dict())
            if not as_json:
                print_comparison(f"{result['model']}, {comparison.name}", comparison)
        if cold:
            say("cold start of muomni generate")
            result["cold_start"] = first_text_s(plan.files.folder, plan.threads, rounds)
    print(json.dumps(result))


def _plan(
    shape: str, model: str | None, prompt: int, new: int, threads: int | None, work: Path, say: Callable[[str], None]
) -> "Plan":
    import torch

    from muomni.bench.decoding.comparisons import Plan
    from muomni.bench.decoding.models import Files, make_model_folder
    from muomni.cli.bench.training import _shape
    from muomni.config import OmniConfig
    from muomni.formats.pretrained import read_config
    from muomni.formats.tensors import resolve_folder

    if model is None:
        folder = work / "model"
        config = OmniConfig(thinker=_shape({"0.6b": "base"}.get(shape, shape)))
        say(f"drawing the weights of {shape}")
        make_model_folder(config, folder)
    else:
        folder = resolve_folder(Path(model))
        config, _ = read_config(folder)
    return Plan(config.thinker, Files(folder, work), work, prompt, new, threads or torch.get_num_threads())


def _groups(
    plan: "Plan",
    variants: Sequence[int],
    kv_cache: bool | None,
    attention: bool,
    peers: "Sequence[Weights]",
    batches: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
) -> "Iterator[Group]":
    """The comparisons, one after the other: `variants` of these batch sizes, and `peers` with these weights."""
    from muomni.bench.decoding import comparisons

    for batch in variants:
        yield comparisons.variants(plan, batch)
    if kv_cache is not False:
        group = comparisons.kv_cache(plan, rounds, required=bool(kv_cache))
        if group is None:
            say("KV cache: not measured, it takes minutes or more context; --kv-cache measures it")
        else:
            yield group
    if attention:
        yield comparisons.attention_backends(plan)
    for weights in peers:
        for batch in batches:
            yield comparisons.peers(plan, weights, batch, say)


def print_comparison(title: str, comparison: "Comparison") -> None:
    """A table of one comparison, with what could not be measured and how far the machine can be trusted."""
    first = comparison.cases[0].name
    names = ("case", "decode tok/s", f"/ {first}", "verdict", "call tok/s", "call loss", "1st ms")
    more = ("GB/s", "of memory", "MiB", "tokens right", "top-1", "KL")
    bench_report.print_table(title, (*names, *more), [_cells(row) for row in comparison.cases])
    memory = f"{comparison.bandwidth:.1f} GB/s ({comparison.bandwidth_low:.1f}–{comparison.bandwidth_high:.1f})"
    bench_report.print_remarks(comparison.unmeasured, comparison.noise, [f"memory: {memory}"])


def _cells(row: "Decoding") -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        row.name,
        f"{row.decode_per_s:,.0f} ({row.low:,.0f}–{row.high:,.0f})",
        f"{row.ratio:.2f}× ({row.ratio_low:.2f}–{row.ratio_high:.2f})",
        row.verdict,
        f"{row.call_per_s:,.0f}",
        shown(row.public_loss, ".1%"),
        f"{row.first_token_ms:,.1f}",
        f"{row.gb_per_s:.1f}",
        f"{row.bandwidth_share:.0%}",
        f"{row.peak_mib:,.0f}",
        f"{row.agreement:.1%}",
        shown(row.top1, ".1%"),
        shown(row.kl, ".1e"),
    ]
