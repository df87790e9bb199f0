"""`muomni bench`: techniques and peers, side by side on this machine."""

import typer

from muomni.cli.bench import report
from muomni.cli.bench.decoding import infer
from muomni.cli.bench.speech import speech
from muomni.cli.bench.training import train

command = typer.Typer(
    cls=report.BenchGroup,
    help="Measure every technique on this machine: muomni bench [all|train|infer|speech] [RUN or preset] "
    "[--quick|--full]. Without a word it is `all tiny --quick`.\n\nExample: muomni bench runs/demo --quick",
)
command.command("all")(report.everything)
command.command("infer")(infer)
command.command("speech")(speech)
command.command("claims")(report.claims)
command.command("train")(train)
