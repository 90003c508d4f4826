"""minibert download: checkpoints and data ahead of time."""

from __future__ import annotations

import click


@click.command(epilog="\b\nExample:\n  minibert download base mrpc")
@click.argument("names", nargs=-1, required=True, metavar="CHECKPOINT|TASK...")
def download(names: tuple[str, ...]) -> None:
    """Fetches checkpoints and data into the cache.

    Checkpoints are aliases, hub ids or google:ALIAS. Data are those of GLUE's tasks, of squad and squad2, and triviaqa,
    which minibert convert-triviaqa makes use of. Interrupted downloads go on where they stopped; a file whose checksum
    is not the published one is refused.
    """
    from minibert import hub
    from minibert.progress import Transfer

    with Transfer() as progress:
        for name, place in hub.download(list(names), progress).items():
            click.echo(f"{name}\t{place}")
