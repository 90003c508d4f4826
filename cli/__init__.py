"""The command line: a thin layer over the Python API; each command is one file, heavy imports stand inside.

Imported as `minibert.cli`. Exit code 1 for what is wrong with the input, 2 for wrong usage.
"""

from __future__ import annotations

import sys

import click

from minibert.cli.download import download
from minibert.cli.evaluate import evaluate
from minibert.cli.finetune import finetune
from minibert.cli.predict import predict
from minibert.errors import MinibertError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="minibert", message="minibert %(version)s")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def cli(debug: bool) -> None:
    """Fine-tunes BERT: Google's recipe through the project's own autograd and kernels.

    \b
    Example:
      minibert finetune mrpc --sample
    """


for command in (finetune, evaluate, predict, download):
    cli.add_command(command)


def main() -> None:
    """The entry point `minibert`: errors become one line on stderr."""
    if "--debug" in sys.argv[1:]:
        cli()
    try:
        cli()
    except MinibertError as error:
        print(f"minibert: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(1)
