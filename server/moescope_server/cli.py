"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import moescope
from moescope.errors import InputError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Home = Annotated[
    Path | None, typer.Option(help="Folder that holds everything kept.", show_default="$MOESCOPE_HOME, or ~/.moescope")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def _version(shown: bool) -> None:
    if shown:
        print(f"moescope {moescope.__version__}")
        raise typer.Exit


@app.callback()
def _moescope(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """See what the experts of a Mixture-of-Experts model specialise in."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port.", show_default="7400, or a free one if it is taken")
    ] = None,
    home: Home = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
) -> None:
    """Serve the page, print its address and open it."""
    from moescope_server.serve import serve as run

    run(host=host, port=port, home=home, browser=not no_browser)
    # Everything is closed. A thread still warming up stands in native code, which aborts while the interpreter ends.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@app.command()
def train(
    preset: Annotated[
        str | None, typer.Argument(metavar="PRESET|FILE", help="A bundled preset or a TOML file.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. optim.steps=500.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with this run of the home folder.")] = None,
    fork: Annotated[
        str | None, typer.Option(metavar="RUN|CHECKPOINT", help="Begin a new run from this checkpoint's weights.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the run.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train a model; the page shows it live. Ctrl-C stops after the step and writes a checkpoint."""
    from moescope_server.commands.train import train as run

    run(preset, set or [], resume=resume, fork=fork, name=name, home=home, json=json)


def _sweeps() -> str:
    """Names of the bundled sweeps, by their files: `moescope.sweep` would import numpy."""
    return ", ".join(
        sorted(path.stem for path in (Path(moescope.__file__).parent / "sweep" / "presets").glob("*.toml"))
    )


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(metavar="NAME|FILE", help=f"A bundled sweep ({_sweeps()}) or a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to keep it.", show_default="sweeps/NAME in the home")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Cells trained at a time, each in a process of its own.")] = 1,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="Seeds, separated by commas.", show_default="the sweep's own")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every cell.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train variants with several seeds each, and compare them. Ctrl-C stops it; the same command goes on with it."""
    from moescope_server.commands.sweep import sweep as run

    run(sweep, set or [], seeds=seeds, out=out, parallel=parallel, home=home, json=json)


@app.command()
def trace(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's folder, or its id in the home folder.")],
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="installed, digits, clusters, a file or folder, or hub:NAME.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the trace.")],
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens to trace.")] = 4000,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run data through a checkpoint and write down every routing decision."""
    from moescope_server.commands.trace import trace as run

    run(checkpoint, data, out, tokens=tokens, home=home, json=json)


@app.command()
def metrics(
    trace: Annotated[str, typer.Argument(help="A trace file, or a trace's id in the home folder.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure a trace: every measure of every layer, beside its null."""
    from moescope_server.commands.metrics import metrics as run

    run(trace, home=home, json=json)


@app.command()
def info(home: Home = None, json: Json = False) -> None:
    """Say what is installed, on what it runs, and what the home folder holds."""
    from moescope_server.commands.info import info as run

    run(home=home, json=json)


def main() -> None:
    """Bad input is one line on stderr and exit code 2."""
    # Read when torch loads. OpenMP threads spin long for one another: beside other work a step took 3 to 10 times.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="moescope", standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has gone; nothing is left to say
        code = 1
    except OSError as error:  # a path that cannot be, a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if not _is_of_sqlite(error):
            raise
        _fail(f"the home folder's moescope.sqlite: {error}", 2)  # the same faults, as SQLite says them
    sys.exit(code if isinstance(code, int) else 0)


def _is_of_sqlite(error: Exception) -> bool:
    sqlite3 = sys.modules.get("sqlite3")  # not imported for its own sake: `--help` needs none of it
    return sqlite3 is not None and isinstance(error, sqlite3.Error)


def _fail(sentence: str, code: int) -> None:
    print(f"moescope: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
