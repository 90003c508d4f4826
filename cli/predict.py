"""minibert predict: labels and probabilities for texts, from a file or as a filter."""

from __future__ import annotations

import click


@click.command(epilog="\b\nExample:\n  printf 'It rained.\\tIt was wet.\\n' | minibert predict runs/mrpc-001")
@click.argument("run")
@click.option("--input", "source", default="-", metavar="FILE", help="tsv, csv or jsonl; - is stdin.  [default: -]")
@click.option("--output", "target", default="-", metavar="FILE", help="- is stdout.  [default: -]")
@click.option("--format", "form", type=click.Choice(["tsv", "jsonl", "google"]), default="tsv", show_default=True,
              help="google: test_results.tsv as Google's script writes it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
def predict(run: str, source: str, target: str, form: str, threads: int | None) -> None:
    """Predicts with the model in RUN (a run directory or a fine-tuned checkpoint).

    The input has one text or pair a line, tab-separated, with or without a header that names the columns
    (sentence1, sentence2, id; or as in the files that RUN was trained on); labels are not needed. Each answer
    is written as soon as its batch is done.
    """
    from minibert import prediction

    prediction.predict_file(run, source, target, form, threads=threads)
