"""minibert predict: labels and probabilities for texts, from a file or as a filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(epilog="\b\nExample:\n  printf 'It rained.\\tIt was wet.\\n' | minibert predict runs/mrpc-001")
@click.argument("run")
@click.option("--input", "source", default="-", metavar="FILE", help="tsv, csv or jsonl; - is stdin.  [default: -]")
@click.option("--output", "target", default="-", metavar="FILE", help="- is stdout.  [default: -]")
@click.option("--format", "form", type=click.Choice(["tsv", "jsonl", "google", "glue"]), help="google: "
              "Google's test_results.tsv. glue: what GLUE's server takes.  [default: tsv]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu", "tpu"]), default="auto", help="[default: auto]")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]), default="auto",
              help="auto: bf16 where the device multiplies it.  [default: auto]")  # fmt: skip
@click.option("--null-score-diff-threshold", "threshold", type=float, help="SQuAD 2.0: in place of the run's.")
@click.option("--task", type=click.Choice(["squad", "squad2"]), help="For a checkpoint without run.json: "
              "which SQuAD it answers.")  # fmt: skip
def predict(
    run: str, source: str, target: str, form: str | None, threshold: float | None, task: str | None, **options: Any
) -> None:
    """Predicts with the model in RUN.

    RUN is a run directory or a fine-tuned checkpoint. For a run of SQuAD, --input is a file in SQuAD's format, and
    --output the directory for predictions.json, nbest_predictions.json and, of SQuAD 2.0, null_odds.json.

    The input has one text or pair a line, tab-separated, with or without a header that names the columns
    (sentence1, sentence2, id; or as in the files that RUN was trained on), or is csv with such a header, or jsonl;
    labels are not needed. From stdin each answer is written as soon as its batch is done; a file is answered 1,024
    texts at a time, and --output is there when all of them are.
    """
    from minibert import remote
    from minibert.model import find_run
    from minibert.progress import Reporter
    from minibert.squad.answering import is_reader

    report = Reporter(quiet=False)
    run = str(remote.checkpoint(run))
    if task or is_reader(find_run(run)):
        from minibert.squad import evaluation

        if "-" in (source, target):
            raise click.UsageError("a run of SQuAD needs --input FILE.json and --output DIR")
        if form:
            raise click.UsageError("a run of SQuAD has files of its own: leave --format out")
        return evaluation.predict_file(run, Path(source), Path(target), threshold, task=task, report=report, **options)
    if threshold is not None:
        raise click.UsageError("--null-score-diff-threshold goes with a run of SQuAD, or with --task")
    from minibert import prediction

    prediction.predict_file(run, source, target, form or "tsv", report=report, **options)
