"""minibert inspect: what is in a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from minibert.cli import show

LONGEST = 200  # letters that are shown of a name or a value


@click.command(epilog="\b\nExample:\n  minibert inspect uncased_L-12_H-768_A-12/bert_model.ckpt")
@click.argument("checkpoint", metavar="CKPT")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(checkpoint: str, as_json: bool) -> None:
    """Shows what is in a checkpoint, and whether all of it is.

    That is format, config and tensors, what is missing or left over, and damages. CKPT is a directory, a file,
    TensorFlow's prefix, Google's zip, a hub id or an alias; it need not be a BERT.
    """
    from minibert import hub
    from minibert.checkpoint import inspection
    from minibert.progress import Transfer

    with Transfer() as progress:
        path = hub.resolve(checkpoint, progress=progress)
    found = inspection.inspect(path)
    show.as_json(found) if as_json else _table(found)


def _printable(text: str) -> str:
    """A name or a value out of a file as a terminal may show it."""
    return ascii(text)[1:-1][:LONGEST]


def _table(found: dict[str, Any]) -> None:
    tensors = [(_printable(tensor["name"]), tensor) for tensor in found["tensors"]]
    width = max((len(name) for name, _ in tensors), default=4)
    click.echo(f"{'tensor':<{width}}  {'shape':<16}{'type':<10}{'bytes':>14}")
    for name, tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        click.echo(f"{name:<{width}}  {shape:<16}{tensor['dtype']:<10}{tensor['bytes']:>14,}")
    count, size = len(found["tensors"]), found["bytes"] / 1e6
    click.echo(f"\n{found['path']}\nformat {found['format']}, {count} tensors, {found['parameters']:,} parameters, "
               f"{size:,.1f} MB, sha256 {found['sha256']}")  # fmt: skip
    if found["config"]:
        shown = {name: value for name, value in found["config"].items() if isinstance(value, int | str)}
        click.echo("config " + ", ".join(f"{_printable(name)} {_printable(str(shown[name]))}" for name in shown))
    for title in ("missing", "left_over"):
        if found[title]:
            click.echo(f"{title.replace('_', ' ')}: {', '.join(map(_printable, found[title]))}")
    if found["damaged"]:  # sentences, which show names as they may be shown
        click.echo(f"damaged: {', '.join(found['damaged'])}")
    if found["note"]:
        click.echo(f"note: {found['note']}")
