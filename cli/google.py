"""Google's flags as absl reads them, for the commands that take them verbatim."""

from __future__ import annotations

from typing import Any

import click

# What Google's scripts have flags for and this engine no use.
UNUSED = {
    "predict_batch_size": "batches of prediction have a size of their own",
    "iterations_per_loop": "an update is one program, and the next one begins as it ends",
    "num_tpu_cores": "all cores are used",
    **dict.fromkeys(
        ("tpu_name", "tpu_zone", "gcp_project", "master"), "a TPU is found on the machine that this runs on"
    ),
}


class Boolean(click.ParamType):
    """true, True, t, 1 and their opposites, as absl takes them."""

    name = "boolean"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if value.lower() in ("true", "t", "1"):
            return True
        if value.lower() in ("false", "f", "0"):
            return False
        self.fail(f"{value!r} is neither true nor false", param, context)


class GoogleCommand(click.Command):
    """Flags as absl reads them: a boolean may stand alone (--do_train) or be negated (--nodo_train)."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        booleans = {p.name for p in self.params if isinstance(p.type, Boolean)}
        others = {p.name for p in self.params} - booleans
        written: list[str] = []
        name = ""
        for arg in args:
            value = name in others  # of the flag before it, such as -1.5
            name = arg.lstrip("-") if arg.startswith("-") and not value else ""
            if name in booleans:
                arg = f"--{name}=true"
            elif name.startswith("no") and name[2:] in booleans:
                arg = f"--{name[2:]}=false"
            elif len(name) > 1 and not arg.startswith("--"):
                arg = f"--{name}"  # one dash will do, but for -h
            written.append(arg)
        return super().parse_args(context, written)


def flag(name: str, kind: Any, text: str, **more: Any) -> Any:
    return click.option(f"--{name}", name, type=kind, help=text, **more)


def unused(command: Any) -> Any:
    """The flags that are taken and mean nothing."""
    for name, why in UNUSED.items():
        command = flag(name, str, f"Means nothing here: {why}.")(command)
    return command


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given and mean something; of the others the user is told."""
    found = {name: value for name, value in flags.items() if value is not None}
    for name, why in UNUSED.items():
        if found.pop(name, None) is not None:
            click.echo(f"--{name} means nothing here: {why}", err=True)
    return found
