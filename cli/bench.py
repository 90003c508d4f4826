"""minibert bench: how fast this machine's kernels are, and how close to what it can do."""

from __future__ import annotations

import json
import sys

import click

WIDTH = 20  # of a bar


@click.command(epilog="\b\nExample:\n  minibert bench --shape minilm")
@click.option("--shape", type=click.Choice(["base", "minilm"]), default="base", show_default=True,
              help="Whose sizes: BERT-Base or MiniLM.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
              help="auto: the GPU where there is one.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]), default="auto", show_default=True,
              help="auto: bf16 where the device multiplies it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def bench(shape: str, device: str, precision: str, threads: int | None, as_json: bool) -> None:
    """Times each kernel of a training step on this machine.

    They run on 32 pairs of MRPC's lengths, and are checked against their definitions first. A bar shows how close it
    comes to its limit: for products what the cores multiply at best, fed from registers or, where it multiplies, in
    BLAS; for the others copying as many bytes.
    """
    from minibert import benchmarks
    from minibert.model import open_device

    opened = open_device(device, threads, precision)
    chosen, where = opened.precision, "gpu" if opened.backend == "gpu" else f"{opened.threads} threads"
    if not as_json:
        click.echo(f"{shape}, {chosen}, {where}\n{'':<46}{'ms':>8}{'rate':>19}  of its limit")
    with opened.session():
        for case in benchmarks.cases(shape):
            row = benchmarks.measure(case, opened, chosen)
            share = row.rate / row.limit
            if as_json:
                click.echo(json.dumps({**row._asdict(), "share": share, "precision": chosen}))
            else:
                bar = ("█" if _unicode() else "#") * round(WIDTH * min(share, 1))
                rate = f"{row.rate / 1e9:,.1f} G{row.unit}"
                click.echo(f"{row.name:<46}{1000 * row.seconds:>8.2f}{rate:>19}  {bar:<{WIDTH}}{share:>5.0%}")


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
