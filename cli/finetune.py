"""minibert finetune: train a checkpoint on a task, evaluate it and write a run directory."""

from __future__ import annotations

from typing import Any

import click

from minibert.cli import show


@click.command(
    epilog="\b\nExample:\n  minibert finetune mrpc --checkpoint base --data-dir glue --output-dir runs/first"
)
@click.argument("task")
@click.option("--checkpoint", metavar="C", help="A directory, a hub id, an alias (base, large, tiny, mini, small, "
              "medium, minilm) or random:ALIAS.  [default: base]")  # fmt: skip
@click.option("--data-dir", metavar="D", type=click.Path(), help="The task's folder or the one that holds it.  "
              "[default: downloaded]")  # fmt: skip
@click.option("--output-dir", metavar="O", type=click.Path(), help="[default: runs/TASK-001, -002, ...]")
@click.option("--epochs", type=float, help="[default: 3]")
@click.option("--batch-size", type=int, help="Examples an update.  [default: 32]")
@click.option("--micro-batch", type=int, help="Examples computed at a time; the update stays that of the whole batch.")
@click.option("--learning-rate", type=float, help="[default: 2e-5]")
@click.option("--max-seq-length", type=int, help="Tokens a text or pair is cut to.  [default: 128]")
@click.option("--warmup", type=float, help="Share of the steps in which the rate rises.  [default: 0.1]")
@click.option("--recipe", type=click.Choice(["google", "stable"]), help="google: as published in 2018. stable: Mosbach "
              "et al.: bias correction, schedule hf.  [default: google]")  # fmt: skip
@click.option("--schedule", type=click.Choice(["google", "hf", "electra"]), help="[default: the recipe's]")
@click.option("--bias-correction/--no-bias-correction", default=None, help="Adam's.  [default: the recipe's]")
@click.option("--gelu", type=click.Choice(["erf", "tanh"]), help="[default: the checkpoint's]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "auto"]), help="[default: auto]")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), help="[default: auto]")
@click.option("--recompute", type=click.Choice(["none", "layers"]), help="Compute layers again in the backward pass "
              "instead of storing them; the same bits.  [default: none]")  # fmt: skip
@click.option("--seed", type=int, help="[default: 1]")
@click.option("--seeds", type=click.IntRange(1), metavar="K", help="Train K times, from --seed on, and summarise.")
@click.option("--eval-every", type=click.IntRange(1), metavar="N", help="Evaluate every N steps, into metrics.jsonl.")
@click.option(
    "--save-every", type=click.IntRange(1), metavar="N", help="Save the state every N steps.  [default: 1000]"
)
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same settings.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote into the output directory.")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--sample", is_flag=True, help="Use the embedded sample data and model (mrpc only): no network needed.")
@click.option("--train", "train_file", type=click.Path(), help="TASK table: the training file (csv, tsv or jsonl).")
@click.option("--dev", "dev_file", type=click.Path(), help="TASK table: the file to evaluate on.")
@click.option("--text-a", metavar="COLUMN", help="TASK table: the text.  [default: found by name]")
@click.option("--text-b", metavar="COLUMN", help="TASK table: the second text of a pair.")
@click.option("--label", metavar="COLUMN", help="TASK table: the label.  [default: label]")
@click.option("--regression", is_flag=True, help="TASK table: the labels are numbers to predict.")
def finetune(task: str, seeds: int | None, **options: Any) -> None:
    """Fine-tunes a BERT checkpoint on TASK: cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli, xnli, or table
    for your own files.

    The results go to stdout, progress to stderr, the model and everything else to the output directory.
    """
    from minibert import finetuning
    from minibert import seeds as many
    from minibert.progress import Reporter

    table = {name: options.pop(name) for name in ("train_file", "dev_file", "text_a", "text_b", "label", "regression")}
    given = {name: value for name, value in options.items() if value is not None}
    chosen = _table(table) if task == "table" else task
    if task != "table" and any(table.values()):
        raise click.UsageError("--train, --dev, --text-a, --text-b, --label and --regression go with TASK table")
    report = Reporter(quiet=False)
    if seeds is None:
        show.results(finetuning.finetune(chosen, report=report, **given))
    else:
        show.seeds(many.finetune_seeds(chosen, seeds, report=report, **given))


def _table(options: dict[str, Any]) -> Any:
    from minibert.tasks.table import table

    if not (options["train_file"] and options["dev_file"]):
        raise click.UsageError("TASK table needs --train FILE and --dev FILE")
    return table(
        options["train_file"], options["dev_file"], text_a=options["text_a"], text_b=options["text_b"],
        label=options["label"] or "label", regression=options["regression"],
    )  # fmt: skip
