"""minibert doctor: what this machine has, what is missing, and which operation runs where."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command(epilog="\b\nExample:\n  minibert doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Shows what minibert finds on this machine, and lacks.

    That is cores, cards and libraries, how to install what is missing, and for each operation the devices that have a
    kernel.
    """
    from minibert.doctor import examine

    found = examine()
    click.echo(json.dumps(found, indent=2)) if as_json else _table(found)


def _table(found: dict[str, Any]) -> None:
    cpu, gpu = found["cpu"], found["gpu"]
    rows = [("system", found["system"])]
    rows += [(name, version) for name, version in found["packages"].items()]
    free = "" if cpu["free_memory"] is None else f", {cpu['free_memory'] / 1e9:.1f} GB free"
    rows.append(("cpu", f"{cpu['threads']} threads, bf16 {cpu['bf16'] or 'no'}{free}"))
    for card in found["cards"]:
        what = (
            f"{card['name']}, {card['memory.total']}, capability {card['compute_cap']}, driver {card['driver_version']}"
        )
        rows.append(("card", f"{what}; extra {card['extra']}"))
    if gpu["usable"]:
        rows.append(("gpu", f"ready: {gpu['precision']}, {gpu['free_memory'] / 1e9:.1f} GB free, CUDA "
                            f"{_cuda(gpu['runtime_cuda'])}, the driver's {_cuda(gpu['driver_cuda'])}"))  # fmt: skip
    else:
        rows.append(("gpu", f"none: {gpu['advice']}"))
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        click.echo(f"{name:<{width}}{text}")
    click.echo("\nkernels")
    for name, backends in found["operations"].items():
        click.echo(f"  {name:<24}{', '.join(backends)}")


def _cuda(number: int) -> str:
    """13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"
