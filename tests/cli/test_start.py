"""The command line starts quickly, lists its commands and turns errors into messages and exit codes."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import muomni
import muomni.cli
from muomni.errors import CheckpointError, ConfigError

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "gradio", "pyarrow", "numpy"}
COMMAND = [sys.executable, "-m", "muomni"]


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "100"} | environment
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=env, timeout=60)


def modules_after(code: str) -> set[str]:
    """Names of all modules that are loaded once `code` has run in a new interpreter."""
    code += "\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def main_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> object:
    """The exit code of `muomni config presets` when it raises `error`."""
    import muomni.cli.config

    def fails() -> None:
        raise error

    monkeypatch.setattr(muomni.cli.config, "command", fails)
    with pytest.raises(SystemExit) as stop:
        muomni.cli.main(["config"])
    return stop.value.code


# Listing


def test_help_lists_every_command_with_its_line() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for name, line in muomni.cli.COMMANDS.items():
        (found,) = [row for row in shown.stdout.splitlines() if row.strip("│ ").startswith(f"{name} ")]
        assert line[:40] in found
    assert "\x1b[" not in shown.stdout


def test_outputs_that_the_caller_closed_are_no_error() -> None:
    command = [*COMMAND, "config", "presets"]
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        assert subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], timeout=60).returncode == 0, closed


def test_no_arguments_show_the_help() -> None:
    assert "Commands" in run().stdout + run().stderr


@pytest.mark.parametrize("name", muomni.cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = run(name, "--help")
    assert shown.returncode == 0
    assert f"Example: muomni {name}" in shown.stdout
    assert import_module(f"muomni.cli.{name}").__doc__


def test_version() -> None:
    assert run("--version").stdout == f"muomni {muomni.__version__}\n"


def test_python_dash_m_and_the_installed_command_are_one() -> None:
    installed = Path(sys.executable).with_name("muomni")
    if not installed.exists():
        pytest.skip("the package is not installed beside this Python")
    shown = subprocess.run([installed, "--version"], capture_output=True, text=True, timeout=60)
    assert shown.stdout == run("--version").stdout


# Loading


def test_import_muomni_is_light() -> None:
    assert not HEAVY & modules_after("import muomni")
    assert "muomni.api.model" not in modules_after("import muomni")


def test_help_loads_no_subcommand() -> None:
    loaded = modules_after("import muomni.cli\ntry: muomni.cli.main(['--help'])\nexcept SystemExit: pass")
    assert not (HEAVY | {"pydantic"}) & loaded
    assert not {f"muomni.cli.{name}" for name in muomni.cli.COMMANDS} & loaded


@pytest.mark.parametrize("name", muomni.cli.COMMANDS)
def test_help_of_a_command_loads_only_that_one(name: str) -> None:
    loaded = modules_after(f"import muomni.cli\ntry: muomni.cli.main(['{name}', '--help'])\nexcept SystemExit: pass")
    assert {other for other in muomni.cli.COMMANDS if f"muomni.cli.{other}" in loaded} == {name}
    assert not HEAVY & loaded


# Errors


def test_mistakes_on_the_command_line_exit_with_2() -> None:
    for args in (["confg"], ["config", "nothing"], ["config", "show"], ["--nothing"]):
        done = run(*args)
        assert done.returncode == 2
        assert "Usage:" in done.stderr
        assert done.stdout == ""
    assert "Did you mean 'config'" in run("confg").stderr


def test_our_errors_are_a_message_without_traceback() -> None:
    done = run("config", "show", "text-tny")
    assert done.returncode == 2
    assert done.stderr.startswith("muomni: no recipe 'text-tny'")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    done = run("config", "show", "text-tny", MUOMNI_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "ConfigError: no recipe" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("x"), 2), (CheckpointError("x"), 1), (KeyboardInterrupt(), 130)], ids=repr
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    assert main_with(monkeypatch, error) == code


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        main_with(monkeypatch, ZeroDivisionError())


def test_a_closed_pipe_is_quiet() -> None:
    # Buffered, as usual: then little output meets the closed pipe only at the very end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for args in (["config", "schema"], ["config", "presets"], ["--version"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            done = subprocess.run([*COMMAND, *args], stdout=out, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
        assert done.stderr == ""


# muomni config


def test_config_schema_and_out(tmp_path: Path) -> None:
    out = tmp_path / "schema.json"
    assert run("config", "schema", "--out", str(out)).returncode == 0
    assert out.read_text(encoding="utf-8") == run("config", "schema").stdout
    assert json.loads(out.read_text(encoding="utf-8"))["title"] == "Recipe"
    done = run("config", "schema", "--out", str(tmp_path / "none" / "x"))
    assert (done.returncode, "cannot be written" in done.stderr) == (2, True)


def test_config_show_prints_a_recipe_that_means_the_same(tmp_path: Path) -> None:
    shown = run("config", "show", "text-nano", "--set", "data.train=book.txt", "--set", "seed=3")
    path = tmp_path / "again.json"
    path.write_text(shown.stdout)
    assert json.loads(shown.stdout)["seed"] == 3
    assert run("config", "show", str(path)).stdout == shown.stdout


def test_config_presets() -> None:
    rows = {row["preset"]: row["parameters"] for row in json.loads(run("config", "presets", "--json").stdout)}
    assert rows["base"] == 596_049_920
    table = run("config", "presets", COLUMNS="80").stdout
    for name, count in rows.items():
        assert f"{name} " in table
        assert f"{count:,}" in table
