"""The commands together, and what an exit looks like.

Exit codes: 0 done; 1 a check found damage; 2 bad input, one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from blockwright import __version__
from blockwright.cli import (
    bench,
    demo,
    evaluate,
    fit,
    generate,
    heal,
    inspect,
    kernels,
    library,
    merge,
    methods,
    plan,
    profile,
)
from blockwright.errors import UserError

app = typer.Typer(
    name="blockwright",
    help="Fit a Hugging Face transformer to a budget, block by block, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(fit.fit)
app.command("plan")(plan.plan)
app.command("heal")(heal.heal)
app.command("merge")(merge.merge)
app.command("profile")(profile.profile)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("generate")(generate.generate)
app.command("kernels")(kernels.kernels)
app.command("methods")(methods.methods)
app.add_typer(library.app, name="library")
app.command("demo")(demo.demo)
app.add_typer(bench.app, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"blockwright {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Fit a Hugging Face transformer to a budget, block by block, and prove the result."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code, never raises for bad input."""
    debug = "--debug" in arguments
    try:
        command = get_command(app)
        code = command.main(list(arguments) or ["--help"], "blockwright", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        return _refuse(f"{message}. See `blockwright --help`.", debug)
    except UserError as error:
        return _refuse(str(error), debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}; put it right and repeat", debug)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("blockwright: interrupted; the same command resumes", file=sys.stderr)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script; libraries' warnings are shown with ``--debug`` only."""
    if "--debug" not in sys.argv:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run(sys.argv[1:]))


def _refuse(message: str, debug: bool) -> int:
    """One line on stderr, exit code 2."""
    if debug:
        traceback.print_exc()
    print("blockwright: " + " ".join(message.split()), file=sys.stderr)
    return 2
