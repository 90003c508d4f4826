"""minibert download: checkpoints and data ahead of time."""

from __future__ import annotations

import click


@click.command(epilog="\b\nExample:\n  minibert download base mrpc")
@click.argument("names", nargs=-1, required=True, metavar="CHECKPOINT|TASK...")
def download(names: tuple[str, ...]) -> None:
    """Fetches checkpoints (aliases, hub ids, google:ALIAS) and the data of GLUE tasks into the cache.

    Interrupted downloads go on where they stopped; a file whose checksum is not the published one is refused.
    """
    from minibert import hub
    from minibert.progress import Transfer

    with Transfer() as progress:
        for name, place in hub.download(list(names), progress).items():
            click.echo(f"{name}\t{place}")
