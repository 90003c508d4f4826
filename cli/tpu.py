"""minibert tpu: training steps compiled for TPUs that are elsewhere, and programs that run without minibert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

# Tokens and examples of the chapter's recipes.
RECIPES = {"mrpc": (128, 32), "squad": (384, 12)}


@click.group(
    invoke_without_command=True,
    epilog="\b\nExample:\n  minibert tpu compile --topology v2-8 --checkpoint large --task squad --batch-size 24",
)
@click.pass_context
def tpu(context: click.Context) -> None:
    """Compiles for TPUs without one, and exports models.

    Training on a TPU itself is minibert finetune ... --device tpu.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@tpu.command(
    epilog="\b\nExample:\n  minibert tpu compile --topology v2-8 --checkpoint large --task squad --batch-size 24"
)
@click.option("--topology", metavar="T", required=True, help="A slice as Cloud TPU names it: v2-8, v3-8, v4-8, v5e-4, "
              "v6e-4, ...; another name lists them all.")  # fmt: skip
@click.option("--checkpoint", metavar="C", default="base", show_default=True, help="As for finetune; its shape counts.")
@click.option("--task", type=click.Choice(list(RECIPES)), default="mrpc", show_default=True,
              help="mrpc: a classifier. squad: answers marked in the text.")  # fmt: skip
@click.option("--max-seq-length", type=int, metavar="N", help="[default: 128, for squad 384]")
@click.option("--batch-size", type=int, metavar="N", help="[default: 32, for squad 12]")
@click.option("--micro-batch", type=int, metavar="N", help="Examples computed at a time, by all cores together.  "
              "[default: the batch]")  # fmt: skip
@click.option("--recompute", type=click.Choice(["none", "layers", "auto"]), default="auto", show_default=True,
              help="As for finetune; auto: none, and where that does not fit layers.")  # fmt: skip
@click.option("--shard-parameters", is_flag=True, help="As for finetune.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "auto"]), default="auto", show_default=True,
              help="auto: bf16.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compile(  # noqa: A001 - the command's name
    topology: str, checkpoint: str, recompute: str, precision: str, as_json: bool, **options: Any
) -> None:
    """Compiles the training step for a slice of TPUs.

    Google's own compiler does it, on any Linux machine, and what each core would hold is printed. Where that is too
    much, it goes on until it has found a way to compute the batch that fits.

    A program takes half a minute to four minutes on free cores; what was compiled once is remembered.
    """
    from minibert.progress import Reporter
    from minibert.settings import TrainConfig
    from minibert.tpu import compile as ahead

    usual = dict(zip(("max_seq_length", "batch_size"), RECIPES[options["task"]], strict=True))
    given = usual | {name: value for name, value in options.items() if value is not None}
    settings = TrainConfig(
        **given, device="tpu", recompute="none" if recompute == "auto" else recompute,
        precision="bf16" if precision == "auto" else precision,
    )  # fmt: skip
    found = ahead.report(topology, checkpoint, settings, recompute, Reporter(quiet=False).say)
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    """The report for people: a line about the slice, one for each way that counts, and a verdict."""
    lines = [
        f"{found['topology']}: {found['cores']} x {found['device']}, {_gib(found['hbm'])} of memory each",
        f"{found['checkpoint']}, {found['task']}, {found['max_seq_length']} tokens, batches of {found['batch_size']}, "
        f"{found['precision']}; each core has",
        "",
        "".join(f"{name:>13}" for name in ("arguments", "temporaries", "peak", "operations", "compiled in")),
    ]
    better = found["instead"]
    for way in (found, better) if better else (found,):
        sizes = (_gib(way[name]) for name in ("arguments", "temporaries", "peak"))
        cells = [*sizes, f"{way['operations'] / 1e12:.2f} T", f"{way['seconds']:.0f} s"]
        lines.append("".join(f"{cell:>13}" for cell in cells) + f"  {way['options']}")
    if found["fits"]:
        verdict = "fits"
    elif better:
        times = better["operations"] / found["operations"]
        verdict = f"does not fit; with {better['options']} it does, for {times:.2f} times the operations"
    else:
        verdict = "does not fit, in no way that was tried: take a smaller --max-seq-length or a larger slice"
    return "\n".join([*lines, "", verdict])


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.2f} GiB"


@tpu.command(epilog="\b\nExample:\n  minibert tpu export --what predict --checkpoint runs/mrpc-001 exported")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--what", type=click.Choice(["train", "predict"]), required=True, help="predict: texts' logits. train: "
              "an update with Google's Adam.")  # fmt: skip
@click.option("--checkpoint", metavar="C", default="base", show_default=True, help="A run's directory, or as for "
              "finetune.")  # fmt: skip
@click.option("--task", type=click.Choice(list(RECIPES)), help="mrpc: a classifier. squad: answers marked in the "
              "text.  [default: the run's kind, or mrpc]")  # fmt: skip
@click.option("--max-seq-length", type=int, metavar="N", help="Tokens that every example is padded to.  [default: the "
              "run's; 128, for squad 384]")  # fmt: skip
@click.option("--recompute", type=click.Choice(["none", "layers"]), default="none", show_default=True,
              help="With train: layers keep their input alone.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="Of matrix products.")  # fmt: skip
def export(out: Path, **options: Any) -> None:
    """Writes a model into OUT as a program for any device.

    That is TPUs, CPUs and NVIDIA's GPUs, and batches of any size. The new folder OUT holds the program, its parameters,
    a manifest and run.py, which needs jax and numpy and nothing of minibert.
    """
    from minibert.tpu import export as exporting

    exporting.export(out, **options)
    click.echo(f"{out}: python {out}/run.py {out}/example.npz RESULTS.npz")


@tpu.command(epilog="\b\nExample:\n  minibert tpu run-exported exported exported/example.npz RESULTS.npz")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.argument("results", type=click.Path())
def run_exported(folder: Path, inputs: tuple[str, ...], results: str) -> None:
    """Calls the program in FOLDER with INPUTS.

    All that it returns for each of these files is written to RESULTS, as the run.py of the folder does it. It is a
    program: run what you trust.
    """
    from minibert.tpu import export as exporting

    exporting.run(folder, *inputs, results)
