"""minibert evaluate: the metrics of a fine-tuned model."""

from __future__ import annotations

from typing import Any

import click

from minibert.cli import show


@click.command(epilog="\b\nExample:\n  minibert evaluate runs/mrpc-001 --data-dir glue")
@click.argument("run")
@click.option("--task", metavar="TASK", help="[default: the run's]")
@click.option("--data-dir", type=click.Path(), help="The task's folder or the one that holds it.  [default: the run's]")
@click.option("--split", metavar="SPLIT", help="A split that has labels.  [default: dev, for mnli also "
              "dev-mismatched]")  # fmt: skip
@click.option("--input", "input_file", type=click.Path(), help="A csv, tsv or jsonl file with labels, instead.")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def evaluate(run: str, as_json: bool, **options: Any) -> None:
    """Evaluates the model in RUN (a run directory or a fine-tuned checkpoint) on labelled data."""
    from minibert import evaluation

    results = evaluation.evaluate_run(run, **{name: value for name, value in options.items() if value is not None})
    show.as_json(results) if as_json else show.table(results)
