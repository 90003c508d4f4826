"""minibert compile: kernels ahead of time."""

from __future__ import annotations

import click


@click.command(epilog="\b\nExample:\n  minibert compile")
def compile() -> None:  # noqa: A001 - the command's name
    """Compiles all kernels for this machine into the cache.

    The first training step begins at once then.
    """
    from minibert import warming

    for precision, seconds in warming.compile_kernels():
        click.echo(f"{precision}: {seconds:.1f} s")
