"""minibert plan: what fits into memory, and with which settings, before anything is allocated."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import click

TENSORFLOWS = 12 * 10**9  # bytes that the second column is about


@click.command(
    epilog="\b\nExample:\n  minibert plan --checkpoint large --task squad --max-seq-length 384 --memory 12GB"
)
@click.option("--checkpoint", metavar="C", default="base", show_default=True, help="As for finetune; its shape counts.")
@click.option("--task", type=click.Choice(["mrpc", "squad"]), default="mrpc", show_default=True,
              help="mrpc: a classifier. squad: answers marked in the text.")  # fmt: skip
@click.option("--max-seq-length", type=int, metavar="N", help="[default: 64, 128, 256, 320, 384 and 512]")
@click.option("--memory", metavar="SIZE", help="Bytes the process may take, as 12GB.  [default: what is free]")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Examples per update.")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
              help="gpu: one need not be there.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]), default="auto", show_default=True,
              help="As for finetune.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["adam", "adam8bit", "adafactor"]), default="adam", show_default=True,
              help="As for finetune.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(checkpoint: str, memory: str | None, as_json: bool, **options: Any) -> None:
    """Predicts the memory that training takes.

    It prints the largest micro-batch (what is computed at once) of full sequences under each policy of recomputation,
    how much longer a step takes with it, and the fastest settings for the batch that was asked for. The second column
    is what TensorFlow 1.11 reached on a 12 GB card.
    """
    from minibert import planning

    found = planning.report(checkpoint, memory, **options)
    if as_json:
        click.echo(json.dumps(found | {"rows": [*found["rows"]]}, indent=2))
        return
    first = next(found["rows"])
    if not first["settings"]:  # nor has any longer one
        click.echo(first["told"])
        return
    columns = found["columns"]
    click.echo(
        f"{checkpoint}, {found['parameters'] / 1e6:.1f} M parameters, {found['precision']}, {found['optimizer']}, "
        f"{found['memory'] / 1e9:.1f} GB: the largest micro-batch\n"
    )
    names = ["tokens", "TensorFlow", *(name.replace(", ", "+") for name in columns)]
    widths = [max(8, len(name) + 2) for name in names]
    click.echo("".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
    told = []
    for row in chain([first], found["rows"]):
        theirs = "" if row["tensorflow"] is None else row["tensorflow"]
        cells = [row["max_seq_length"], theirs, *row["largest"].values()]
        click.echo("".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True)))
        told.append(f"{row['max_seq_length']:>8}  {row['told']}")
    times = ["time", "", *(f"x {time:.2f}" for time in columns.values())]
    click.echo("".join(f"{cell:>{width}}" for cell, width in zip(times, widths, strict=True)))
    if first["tensorflow"] is not None and found["memory"] != TENSORFLOWS:
        click.echo("TensorFlow: on a card of 12 GB, whatever --memory is")
    click.echo("\n".join(["", f"for batches of {options['batch_size']}", *told]))
