"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from moescope.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """See what the experts of a Mixture-of-Experts model specialise in."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port.")] = None,
    home: Annotated[Path | None, typer.Option(help="Home folder.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")] = False,
) -> None:
    """Serve the page."""
    from moescope_server.serve import serve as run

    run(host=host, port=port, home=home, browser=not no_browser)


def main() -> None:
    try:
        app()
    except InputError as error:
        print(f"moescope: {error}", file=sys.stderr)
        sys.exit(2)
