"""minibert run-classifier: Google's run_classifier.py, flag by flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minibert.cli.google import Boolean, GoogleCommand, flag, given, unused


@click.command(
    cls=GoogleCommand, name="run-classifier",
    epilog="\b\nExample:\n  minibert run-classifier --task_name=MRPC --do_train=true --do_eval=true \\\n"
    "    --data_dir=glue/MRPC --vocab_file=bert/vocab.txt --bert_config_file=bert/bert_config.json \\\n"
    "    --init_checkpoint=bert/bert_model.ckpt --output_dir=/tmp/mrpc_output/",
)  # fmt: skip
@flag("task_name", str, "cola, mnli, mrpc, xnli, or another task of minibert's.", required=True)
@flag("data_dir", click.Path(path_type=Path), "The task's folder.", required=True)
@flag("bert_config_file", click.Path(path_type=Path), "The model's bert_config.json.", required=True)
@flag("vocab_file", click.Path(path_type=Path), "The model's vocab.txt.", required=True)
@flag("output_dir", click.Path(path_type=Path), "Where checkpoints and results go, or went.", required=True)
@flag("init_checkpoint", str, "The checkpoint to start from: a prefix, a directory, or what else minibert reads.")
@flag("do_lower_case", Boolean(), "[default: true]")
@flag("max_seq_length", int, "[default: 128]")
@flag("do_train", Boolean(), "[default: false]")
@flag("do_eval", Boolean(), "[default: false]")
@flag("do_predict", Boolean(), "[default: false]")
@flag("train_batch_size", int, "[default: 32]")
@flag("eval_batch_size", int, "Examples over which `loss` averages.  [default: 8]")
@flag("learning_rate", float, "[default: 5e-5]")
@flag("num_train_epochs", float, "[default: 3]")
@flag("warmup_proportion", float, "[default: 0.1]")
@flag("save_checkpoints_steps", int, "[default: 1000]")
@flag("use_tpu", Boolean(), "Compute on the TPU of this machine, through JAX: docs/tpu.md.  [default: false]")
@unused
def run_classifier(**flags: Any) -> None:
    """Google's run_classifier.py: its flags, its files.

    A checkpoint in --output_dir comes before --init_checkpoint, and training goes on from it; training that has had
    all its steps is skipped. true, True and 1 are the same.
    """
    from minibert import estimator
    from minibert.progress import Reporter

    results = estimator.run_classifier(estimator.Flags(**given(flags)), Reporter(quiet=False))
    if results:
        click.echo("***** Eval results *****")
        for name in sorted(results):
            click.echo(f"  {name} = {results[name]}")
