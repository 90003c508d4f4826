"""minibert finetune: train a checkpoint on a task, evaluate it and write a run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

import click

from minibert.cli import show

_switch = partial(click.option, is_flag=True, default=None)  # None where it is not given, like every other option

SQUAD = (
    "doc_stride", "max_query_length", "n_best_size", "max_answer_length", "null_score_diff_threshold", "verbose",
)  # fmt: skip
NOT_SQUAD = ("sample", "train", "text_a", "text_b", "label", "regression", "eval_every")


@click.command(
    epilog="\b\nExample:\n  minibert finetune mrpc --checkpoint base --data-dir glue --output-dir runs/first"
)
@click.argument("task")
@click.option("--checkpoint", metavar="C", help="A directory or file, here or at gs://, a hub id, an alias (base, "
              "large, tiny, mini, small, medium, minilm, base-cased, large-cased, large-wwm, large-cased-wwm, "
              "multilingual, chinese, L-2_H-128 to L-12_H-768), google:ALIAS, or random: and one of the first seven.  "
              "[default: base]")  # fmt: skip
@click.option("--data-dir", metavar="D", type=click.Path(), help="The task's folder or the one that holds it.  "
              "[default: downloaded]")  # fmt: skip
@click.option("--output-dir", metavar="O", type=click.Path(), help="Here or at gs://.  [default: runs/TASK-001, "
              "-002, ...]")  # fmt: skip
@click.option("--epochs", type=float, help="Passes over the training data.  [default: 3]")
@click.option("--batch-size", type=int, help="Examples per update.  [default: 32]")
@click.option("--micro-batch", type=int, help="Examples computed at a time; the update stays that of the "
              "whole batch.  [default: what fits]")  # fmt: skip
@click.option("--learning-rate", type=float, help="The highest, after the warm-up.  [default: 2e-5]")
@click.option("--max-seq-length", type=int, help="Tokens a text or pair is cut to.  [default: 128]")
@click.option("--warmup", type=float, help="Share of the steps in which the rate rises.  [default: 0.1]")
@click.option("--recipe", type=click.Choice(["google", "stable"]), help="google: as published in 2018. stable: Mosbach "
              "et al.: bias correction, schedule hf.  [default: google]")  # fmt: skip
@click.option("--schedule", type=click.Choice(["google", "hf", "electra"]), help="After the warm-up: google, as if the "
              "decay had begun at step 0; hf, down from the peak; electra, the product of rise "
              "and decay.  [default: the recipe's]")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["adam", "adam8bit", "adafactor"]), help="adam keeps 8 bytes per "
              "parameter, adam8bit 2, adafactor next to none.  [default: adam]")  # fmt: skip
@click.option("--bias-correction/--no-bias-correction", default=None, help="Adam's.  [default: the recipe's]")
@click.option("--gelu", type=click.Choice(["erf", "tanh"]), help="erf: exact. tanh: the approximation in Google's code "
              "since 2019.  [default: the checkpoint's]")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "auto"]), help="tf32: on GPUs. auto: bf16 "
              "if the device multiplies it, else fp32.  [default: auto]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu", "tpu"]), help="auto: the GPU if there is "
              "one. tpu: see docs/tpu.md in the repository.  [default: auto]")  # fmt: skip
@click.option("--micro-tokens", type=int, help="Tokens computed at a time, at most, as even as can be; with "
              "--micro-batch both limits hold.  [default: what fits]")  # fmt: skip
@click.option("--memory", metavar="SIZE", help="What the process may take, as 12GB: decides about micro-batches and "
              "recomputation where they are not given.  [default: what is free]")  # fmt: skip
@click.option("--recompute", metavar="POLICY", help="What the backward pass computes again instead of storing it: "
              "none, cheap, layers, segments:K, on a GPU also host, or auto, the fastest that fits; same bits.  "
              "[default: auto]"
              )  # fmt: skip
@_switch("--layerwise-update", help="Compute gradients twice, but never hold more "
              "than one layer's.")  # fmt: skip
@_switch("--shard-parameters", help="--device tpu: keep a part of weights and moments "
              "on each device.")  # fmt: skip
@_switch("--memory-report", "report_memory", help="Report where the memory of a step "
              "goes; memory.json, and with the plot extra memory.png.")  # fmt: skip
@click.option("--seed", type=int, help="Of the order of examples, dropout and new weights.  [default: 1]")
@click.option("--seeds", type=click.IntRange(1), metavar="K", help="Train K times, from --seed on, and summarise; "
              "not for squad.")  # fmt: skip
@click.option("--eval-every", type=click.IntRange(1), metavar="N", help="Evaluate every N steps, into "
              "metrics.jsonl; not for squad.  [default: at the end only]")  # fmt: skip
@click.option(
    "--save-every", type=click.IntRange(1), metavar="N", help="Save the state every N steps.  [default: 1000]"
)
@_switch("--resume", help="Continue the unfinished run in --output-dir, or the task's newest, with its settings.")
@_switch("--overwrite", help="Replace what an earlier run wrote into the output directory.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: all cores]")
@_switch("--sample", help="Use the embedded sample data and model, rate 1e-4 and 64 tokens (mrpc only): no network "
         "needed.")  # fmt: skip
@click.option("--train", type=click.Path(), help="TASK table: the training file (csv, tsv or jsonl).")
@click.option("--dev", type=click.Path(), help="TASK table, squad or squad2: the file to evaluate on.")
@click.option("--text-a", metavar="COLUMN", help="TASK table: the text; the case of columns does not "
              "count.  [default: found by name: sentence1 and sentence2, #1 String and #2 String, question1 and "
              "question2, question and sentence, premise and hypothesis, text_a and text_b, sentence, text]"
              )  # fmt: skip
@click.option("--text-b", metavar="COLUMN", help="TASK table: the second text of a pair.  [default: "
              "found by name, unless --text-a is given]")  # fmt: skip
@click.option("--label", metavar="COLUMN", help="TASK table: the label.  [default: label]")
@_switch("--regression", help="TASK table: the labels are numbers to predict.")
@click.option("--first", metavar="FILE[:EPOCHS]", help="TASK squad or squad2: train on this file first, "
              "for 1 epoch unless told ...")  # fmt: skip
@click.option("--then", multiple=True, metavar="FILE[:EPOCHS]", help="... and then on this one, and so on: stages, "
              "each with its own warm-up and decay.")  # fmt: skip
@click.option("--doc-stride", type=int, help="TASK squad, squad2: tokens from one window of a long text to the next.  "
              "[default: 128]")  # fmt: skip
@click.option("--max-query-length", type=int, help="TASK squad, squad2: tokens a question is cut to.  [default: 64]")
@click.option("--n-best-size", type=int, help="TASK squad, squad2: answers kept.  [default: 20]")
@click.option("--max-answer-length", type=int, help="TASK squad, squad2: the most tokens of an answer.  "
              "[default: 30]")  # fmt: skip
@click.option("--null-score-diff-threshold", type=float, help="TASK squad2: give no answer if its score "
              "beats the best answer's by more than this.  [default: the best on the development set]")  # fmt: skip
@_switch("--verbose", help="TASK squad, squad2: name every question that is left out.")
def finetune(task: str, seeds: int | None, **options: Any) -> None:
    """Fine-tunes a BERT checkpoint on TASK.

    TASK is cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli, xnli, table for your own files, or squad or squad2,
    whose defaults are 2 epochs, batches of 12, rate 3e-5 and 384 tokens.

    The results go to stdout, progress to stderr, the model and everything else to the output directory.
    """
    from minibert.errors import plain

    stages = options.pop("first"), options.pop("then")
    given = {name: value for name, value in options.items() if value is not None}
    if plain(task) in ("squad", "squad1", "squad1.1", "squad2", "squad2.0"):
        return _squad("squad2" if "2" in task else "squad", seeds, stages, given)
    from minibert import finetuning
    from minibert import seeds as many
    from minibert.progress import Reporter
    from minibert.tasks.table import OWN

    if any(stages) or any(name in given for name in SQUAD):
        raise click.UsageError(
            f"--first, --then and --{', --'.join(SQUAD).replace('_', '-')} go with TASK squad or squad2"
        )
    own, is_table = [name for name in OWN if name in given], plain(task) == "table"
    if is_table and not ("resume" in given or {"train", "dev"} <= given.keys()):
        raise click.UsageError("TASK table needs --train FILE and --dev FILE")
    if own and not is_table:
        raise click.UsageError("--train, --dev, --text-a, --text-b, --label and --regression go with TASK table")
    report = Reporter(quiet=False)
    with _offline_options(task, given):
        if seeds is None:
            show.results(finetuning.finetune(task, report=report, **given))
        else:
            show.seeds(many.finetune_seeds(task, seeds, report=report, **given))


@contextlib.contextmanager
def _offline_options(task: str, given: dict[str, Any]) -> Iterator[None]:
    """Adds to the error of a machine without a network which of this command's options need none."""
    from minibert.errors import DownloadError, plain
    from minibert.files import OFFLINE_HELP

    try:
        yield
    except DownloadError as error:
        if OFFLINE_HELP not in str(error):
            raise
        options = "--checkpoint PATH" if plain(task) == "table" else "--checkpoint PATH, --data-dir DIR"
        sample = (
            "; or take the embedded sample: minibert finetune mrpc --sample"
            if plain(task) == "mrpc" and "sample" not in given
            else ""
        )
        raise DownloadError(f"{error} ({options}){sample}") from error


def _squad(task: str, seeds: int | None, stages: tuple[str | None, tuple[str, ...]], given: dict[str, Any]) -> None:
    from minibert.progress import Reporter
    from minibert.squad import finetuning

    unfit = [name for name in NOT_SQUAD if name in given] + ["seeds"] * (seeds is not None)
    if unfit:
        _refuse(task, unfit[0])
    first, then = stages
    if then and not first:
        raise click.UsageError("--then comes after --first FILE:EPOCHS")
    if "dev" in given:
        given["dev_file"] = given.pop("dev")
    parts = [_stage(text) for text in (first, *then) if text]
    with _offline_options(task, given):
        show.results(finetuning.finetune_squad(task, stages=parts, report=Reporter(quiet=False), **given))


def _refuse(task: str, option: str) -> NoReturn:
    """The usage error for an option that SQuAD's tasks do not have; of --train with what they have instead."""
    from minibert import datasets

    instead = ""
    if option == "train":
        names = " and ".join(datasets.SQUAD[task])
        instead = f": give --first FILE:EPOCHS, and --dev FILE, or --data-dir DIR with {names} in it"
    raise click.UsageError(f"--{option.replace('_', '-')} does not go with TASK {task}{instead}")


def _stage(text: str) -> tuple[str, float]:
    file, _, epochs = text.rpartition(":")
    if not file or "/" in epochs:  # such as gs://bucket/train.json
        return text, 1.0
    try:
        return file, float(epochs)
    except ValueError:
        raise click.UsageError(f"{text}: not FILE:EPOCHS, as in train-v1.1.json:2") from None
