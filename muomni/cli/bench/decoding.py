"""`muomni bench infer`: decoding, side by side on this machine."""

import tempfile
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.bench import report as bench_report
from muomni.cli.common.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from muomni.bench.decoding.compare import Comparison, Group
    from muomni.bench.decoding.comparisons import Plan


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
    rounds: bench_report.Rounds = 5,
    threads: bench_report.Threads = None,
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
    as_json: bench_report.OnlyJson = False,
) -> None:
    """Decoding. With MODEL, --quick or --full a report as `bench all` makes it.

    Otherwise tables of runners, weights, batch sizes, KV cache, attention; with --peers beside other libraries.
    Cases run in processes of their own and take turns. Tokens are compared with the fp32 model, eager, one row at a
    time. Ends with one JSON line. Example: muomni bench infer --shape 12m --batch 1,16 --peers
    """
    if bench_report.wants_report(ctx, target is not None or full is not None):
        return bench_report.report(("infer",), "infer", target, full, out, repeat)
    from muomni import __version__
    from muomni.bench.decoding import comparisons
    from muomni.bench.decoding.cold_start import first_text_s
    from muomni.bench.decoding.compare import compare_decoding

    batches, peer_weights = comparisons.batches_of(batch), comparisons.weights_of(weights)
    on_update = bench_report.show_progress()
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muomni-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        plan = _plan(shape, model, prompt, new, threads, work)
        result: dict[str, Any] = {
            "model": model or shape,
            "parameters": plan.thinker.num_parameters(),
            "prompt": prompt,
            "new": new,
            "threads": plan.threads,
            "muomni": __version__,
            "comparisons": [],
        }
        groups: list[Callable[[], Group | None]] = [
            partial(comparisons.variants, plan, rows) for rows in batches if variants
        ]
        if kv_cache is not False:
            groups.append(partial(comparisons.kv_cache, plan, rounds, required=bool(kv_cache)))
        if attention:
            groups.append(partial(comparisons.attention_backends, plan))
        for weight, rows in product(peer_weights if peers else (), batches):
            groups.append(partial(comparisons.peers, plan, weight, rows, on_update))
        for make in groups:
            group = make()
            if group is None:
                on_update("KV cache: not measured, it takes minutes or more context; --kv-cache measures it")
                continue
            comparison = compare_decoding(group, plan.thinker, plan.reference(), rounds, on_update)
            result["comparisons"].append(comparison.as_dict())
            if not as_json:
                print_comparison(f"{result['model']}, {comparison.name}", comparison)
        if cold:
            on_update("cold start of muomni generate")
            result["cold_start"] = first_text_s(plan.files.folder, plan.threads, rounds)
    print_json(result)


def _plan(shape: str, model: str | None, prompt: int, new: int, threads: int | None, work: Path) -> "Plan":
    import torch

    from muomni.bench.decoding.comparisons import Plan
    from muomni.bench.decoding.models import Files, make_model_folder
    from muomni.cli.bench.training import shape_of
    from muomni.config import OmniConfig
    from muomni.formats.pretrained import read_config
    from muomni.formats.tensors import resolve_folder

    if model is None:
        folder = work / "model"
        config = OmniConfig(thinker=shape_of({"0.6b": "base"}.get(shape, shape)))
        make_model_folder(config, folder)
    else:
        folder = resolve_folder(Path(model))
        config, _ = read_config(folder)
    return Plan(config.thinker, Files(folder, work), work, prompt, new, threads or torch.get_num_threads())


def print_comparison(title: str, comparison: "Comparison") -> None:
    """A table of one comparison, with what could not be measured and how far the machine can be trusted."""
    columns = {
        "case": "{0.name}",
        "decode tok/s": "{0.decode_per_s:,.0f} ({0.low:,.0f}–{0.high:,.0f})",
        f"/ {comparison.cases[0].name}": "{0.ratio:.2f}× ({0.ratio_low:.2f}–{0.ratio_high:.2f})",
        "verdict": "{0.verdict}",
        "call tok/s": "{0.call_per_s:,.0f}",
        "call loss": "{0.public_loss:.1%}",
        "1st ms": "{0.first_token_ms:,.1f}",
        "GB/s": "{0.gb_per_s:.1f}",
        "of memory": "{0.bandwidth_share:.0%}",
        "MiB": "{0.peak_mib:,.0f}",
        "tokens right": "{0.agreement:.1%}",
        "top-1": "{0.top1:.1%}",
        "KL": "{0.kl:.1e}",
    }
    bench_report.print_measured(title, comparison.cases, columns, left=("case", "verdict"))
    memory = f"{comparison.bandwidth:.1f} GB/s ({comparison.bandwidth_low:.1f}–{comparison.bandwidth_high:.1f})"
    bench_report.print_remarks(comparison.unmeasured, comparison.noise, [f"memory: {memory}"])
