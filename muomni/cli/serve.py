"""`muomni serve`: a model behind OpenAI's API."""

import os
from pathlib import Path
from typing import Annotated

import typer

from muomni.cli.common import options
from muomni.errors import UserError
from muomni.files import text_lines

_KEY_VARIABLE = "MUOMNI_API_KEY"


def command(
    run: options.Run,
    host: Annotated[str, typer.Option(help="Address to listen on; another than this machine's needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Keys that open the server, one a line; else ${_KEY_VARIABLE}."),
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Let everybody in who reaches --host.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name in URLs that is answered; * for any.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Pages of this origin may call (CORS).")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What requests call the model (default: the run's name).")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Requests computed side by side.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests beyond these that may wait.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply, at most.")] = 4096,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that open replies get when the server is told to stop.")
    ] = 20.0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse keys of requests that are not known.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Make float weights int8 while they are read: a quarter of the memory.")
    ] = False,
    runner: options.Runner = None,
    device: options.Device = "auto",
) -> None:
    """Serve a model over HTTP as OpenAI's API: chats with pictures and sounds, and plain continuations.

    Ctrl-C, or SIGTERM, lets open replies end.

    Example: muomni serve runs/demo

    Example: curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json'
    -d '{"messages": [{"role": "user", "content": "Hello"}]}'
    """
    keys = _keys(api_key_file)
    if not keys and not no_key and not _loopback(host):
        raise UserError(
            f"--host {host} can be reached from elsewhere: give --api-key-file or ${_KEY_VARIABLE}, or say --no-key"
        )
    try:
        from muomni.serve.server import bind, serve
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'muomni[serve]'") from None
    from muomni.serve.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        keys=keys,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        model_name=model_name or Path(run).resolve().name,
        slots=slots,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        drain_s=shutdown_timeout,
        strict=strict,
    )
    with bind(settings) as listening:  # an address that is taken is told before the model is loaded
        model = options.Decoding(int8=int8, device=device, runner=runner).load(run)
        serve(model, settings, listening, lambda url: print(f"{settings.model_name} at {url}/v1", flush=True))


def _keys(file: Path | None) -> tuple[str, ...]:
    from muomni.serve.settings import read_keys

    if file is None:
        return read_keys([os.environ.get(_KEY_VARIABLE, "")])
    try:
        keys = read_keys(text_lines(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text (byte {error.start})") from None
    if not keys:
        raise UserError(f"{file}: holds no key; one a line")
    return keys


def _loopback(host: str) -> bool:
    from muomni.serve.settings import is_loopback

    return is_loopback(host)
