"""minibert answer: questions about a text, one or as they come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from minibert.cli import show


@click.command(epilog='\b\nExample:\n  minibert answer runs/squad-001 --context article.txt --question "Who wrote it?"')
@click.argument("run")
@click.option(
    "--context", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The text, UTF-8; - is stdin."
)
@click.option("--question", help="[default: asked for, or read from stdin line by line]")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Answers to show.")
@click.option("--task", type=click.Choice(["squad", "squad2"]), help="squad2: of a checkpoint, that there may be no "
              "answer.  [default: the run's]")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]), default="auto",
              help="auto: bf16 where the device multiplies it.  [default: auto]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu", "tpu"]), default="auto", help="[default: auto]")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a question: for programs.")
def answer(run: str, context: Path, question: str | None, top: int, as_json: bool, **options: Any) -> None:
    """Answers questions about a text with the reader in RUN.

    An answer is a part of the text, with its probability and its place, the best first. A place is the first character
    and the one after the last, counted from 0. In a pipe there is a line an answer and nothing else; --json also has
    the questions.
    """
    from minibert import files, remote
    from minibert.errors import DataError
    from minibert.squad import answering

    if str(context) == "-":
        if question is None:
            raise click.UsageError("--context - takes stdin for the text: give --question, too")
        text = _decoded(sys.stdin.buffer.read(), "the text on stdin")
    else:
        context = Path(remote.local(context))
        with files.one_line(context, "read", DataError):
            raw = context.read_bytes()
        text = _decoded(raw, context)
    model = answering.load_squad(run, **options)
    if question is not None:
        return show.answers(question, model.answer(question, text, top), as_json)
    apart = sys.stdout.isatty() and not as_json  # a program finds the question in the JSON
    for one in _asked():
        if apart and not sys.stdin.isatty():  # else it stands there already, typed
            click.echo(one)
        show.answers(one, model.answer(one, text, top), as_json)
        if apart:
            click.echo()


def _asked() -> Any:
    """Questions from stdin, with a prompt where a person types them; an empty line ends."""
    live = sys.stdin.isatty()
    while True:
        if live:
            click.echo("question: ", nl=False, err=True)
        raw = sys.stdin.buffer.readline()
        if not raw.strip():
            if not raw or live:
                return
            continue
        yield _decoded(raw, "the question on stdin").strip()


def _decoded(raw: bytes, what: object) -> str:
    from minibert.errors import DataError

    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: byte {error.start} is not UTF-8; save it as UTF-8") from None
