"""The command line: a thin layer over the Python API; each command is one file, heavy imports stand inside.

Imported as `minibert.cli`. An error is one line on stderr. Exit codes: 1 for what is wrong with the input or the
machine, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM in training.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from minibert.cli.answer import answer
from minibert.cli.bench import bench
from minibert.cli.compile import compile
from minibert.cli.convert import convert
from minibert.cli.convert_triviaqa import convert_triviaqa
from minibert.cli.doctor import doctor
from minibert.cli.download import download
from minibert.cli.evaluate import evaluate
from minibert.cli.finetune import finetune
from minibert.cli.inspect import inspect
from minibert.cli.plan import plan
from minibert.cli.predict import predict
from minibert.cli.run_classifier import run_classifier
from minibert.cli.run_squad import run_squad
from minibert.cli.tpu import tpu
from minibert.errors import MinibertError, Stopped

PACKAGE = Path(__file__).parent.parent


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if wanted:
        try:
            click.echo(f"minibert {version('minibert')}")
        except PackageNotFoundError:
            click.echo("minibert, a checkout that is not installed")
        context.exit()


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Show the version and exit.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error: minibert --debug COMMAND ...")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Fine-tunes BERT: Google's recipe through the project's own autograd and kernels.

    \b
    Example:
      minibert finetune mrpc --sample
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    finetune, evaluate, predict, answer, run_classifier, run_squad, download, convert, convert_triviaqa, inspect,
    compile, bench, plan, doctor, tpu,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """The entry point `minibert`: errors become one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: an answer may have what the terminal has not
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            code = cli(prog_name="minibert", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "minibert"
        code = _complain(2, f"{error.format_message()} (see {command} --help)")
    except click.Abort as error:  # what click makes of Ctrl-C
        code = _complain(130, str(error.__cause__ or "") or "interrupted")
    except Stopped as error:
        code = _complain(error.code, str(error))
    except MinibertError as error:
        if "--debug" in sys.argv:
            raise
        code = _complain(1, str(error))
    except MemoryError as error:
        if "--debug" in sys.argv:
            raise
        code = _complain(1, f"memory does not suffice: {error or 'nobody says for what'}; free some, or ask for less")
    except (BrokenPipeError, SystemExit) as error:
        # The reader of stdout has gone, as `true` does: click makes an exit with 1 of that, and exits so nowhere else
        # but after shell completion. 141 is what a shell says of a command that SIGPIPE has ended.
        code = 141 if isinstance(error, BrokenPipeError) or error.code == 1 else error.code
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as below
    except OSError as error:  # of a file that nobody foresaw, or of stdout: a full disk behind a redirection
        if "--debug" in sys.argv:
            raise
        code = _complain(1, f"{error.filename or '<stdout>'}: {error.strerror or error}; check the path and the disk")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what the old one still holds would fail again at the exit
    sys.exit(code)


def _show_warning(
    python: Callable[..., None], message: Warning | str, category: type[Warning], filename: str, *more: Any
) -> None:
    """A warning of minibert's own as a line; any other as `python` shows it, with the place in the source."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        _complain(0, str(message))
    else:
        python(message, category, filename, *more)


def _complain(code: int, text: str) -> int:
    try:
        print("minibert: " + " ".join(text.split()), file=sys.stderr)
    except OSError:  # of a terminal that was closed, as SIGHUP tells: the exit code is the right one still
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as above
    return code
