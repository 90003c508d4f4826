"""minibert evaluate: the metrics of a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minibert.cli import show

SQUAD = ("data", "output_dir", "null_score_diff_threshold", "predictions", "null_odds")


@click.command(epilog="\b\nExample:\n  minibert evaluate runs/mrpc-001 --data-dir glue")
@click.argument("run")
@click.option("--task", metavar="TASK", help="Another task of the same labels; of a checkpoint that answers "
              "questions squad or squad2.  [default: the run's]")  # fmt: skip
@click.option("--data-dir", type=click.Path(), help="The folder of the task's data, or the one that holds it.  "
              "[default: the run's]")  # fmt: skip
@click.option("--split", metavar="SPLIT", help="A split that has labels.  [default: dev, for mnli also "
              "dev-mismatched]")  # fmt: skip
@click.option("--input", "input_file", type=click.Path(), help="Your own csv, tsv or jsonl file with labels, in "
              "place of a task's data.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu", "tpu"]), help="[default: auto]")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]),
              help="auto: bf16 where the device multiplies it.  [default: auto]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="SQuAD: the questions.  "
              "[default: the run's development file]")  # fmt: skip
@click.option("--output-dir", metavar="O", type=click.Path(path_type=Path), help="SQuAD: keep predictions.json, "
              "nbest_predictions.json and null_odds.json there.")  # fmt: skip
@click.option("--null-score-diff-threshold", type=float, help="SQuAD 2.0: in place of the run's.")
@click.option("--predictions", metavar="FILE", type=click.Path(path_type=Path), help="RUN squad or squad2: score this "
              "file.")  # fmt: skip
@click.option("--null-odds", metavar="FILE", type=click.Path(path_type=Path), help="RUN squad2: the "
              "null_odds.json of these predictions, to find the best thresholds.")  # fmt: skip
def evaluate(run: str, as_json: bool, **options: Any) -> None:
    """Evaluates the model in RUN on labelled data.

    RUN is a run directory or a fine-tuned checkpoint. With squad or squad2 for RUN, and --data and --predictions, it is
    the official evaluator over files; to evaluate a run directory called squad2, write ./squad2.
    """
    from minibert import remote
    from minibert.errors import plain

    given = {name: value for name, value in options.items() if value is not None}
    if plain(given.get("task", "")) in ("squad", "squad2"):
        given["task"] = plain(given["task"])
    run = str(remote.checkpoint(run))
    if run in ("squad", "squad2"):
        _files(run, given, as_json)
    elif given.get("task") in ("squad", "squad2") or _is_reader(run):
        _reader(run, given, as_json)
    else:
        from minibert import evaluation

        _refuse(given, SQUAD, "a classifier")
        results = evaluation.evaluate_run(run, **given)
        show.as_json(results) if as_json else show.table(results)


def _files(task: str, given: dict[str, Any], as_json: bool) -> None:
    from minibert.squad import evaluation

    if not {"data", "predictions"} <= given.keys():
        raise click.UsageError(f"{task} needs --data FILE and --predictions FILE; a run of that name is ./{task}")
    _refuse(given, ("task", "data_dir", "split", "input_file", "device", "threads", "precision", "output_dir",
                    "null_score_diff_threshold"), "files")  # fmt: skip
    if task == "squad" and "null_odds" in given:
        raise click.UsageError("--null-odds goes with squad2")
    results = evaluation.evaluate_files(task, given["data"], given["predictions"], given.get("null_odds"))
    show.as_json(results) if as_json else show.squad(results)


def _reader(run: str, given: dict[str, Any], as_json: bool) -> None:
    from minibert.progress import Reporter
    from minibert.squad import evaluation

    _refuse(given, ("data_dir", "split", "input_file", "predictions", "null_odds"), "a run of SQuAD")
    if given.get("task") not in (None, "squad", "squad2"):
        raise click.UsageError(f"--task {given['task']} does not go with a model that answers questions")
    results = evaluation.evaluate_run(run, report=Reporter(quiet=False), **given)
    show.as_json(results) if as_json else show.squad(results)


def _is_reader(run: str) -> bool:
    from minibert.model import find_run
    from minibert.squad.answering import is_reader

    return is_reader(find_run(run))


def _refuse(given: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if name in given:
            raise click.UsageError(f"--{name.replace('_', '-').replace('-file', '')} does not go with {what}")
