"""minibert run-squad: Google's run_squad.py, flag by flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minibert.cli.google import Boolean, GoogleCommand, flag, given, unused


@click.command(
    cls=GoogleCommand, name="run-squad",
    epilog="\b\nExample:\n  minibert run-squad --vocab_file=bert/vocab.txt \\\n"
    "    --bert_config_file=bert/bert_config.json \\\n"
    "    --init_checkpoint=bert/bert_model.ckpt --do_train=True --train_file=squad/train-v1.1.json \\\n"
    "    --do_predict=True --predict_file=squad/dev-v1.1.json --train_batch_size=12 --learning_rate=3e-5 \\\n"
    "    --num_train_epochs=2.0 --max_seq_length=384 --doc_stride=128 --output_dir=/tmp/squad_base/",
)  # fmt: skip
@flag("bert_config_file", click.Path(path_type=Path), "The model's bert_config.json.", required=True)
@flag("vocab_file", click.Path(path_type=Path), "The model's vocab.txt.", required=True)
@flag("output_dir", click.Path(path_type=Path), "Where checkpoints and predictions go, or went.", required=True)
@flag("train_file", click.Path(path_type=Path), "SQuAD's JSON, to train on.")
@flag("predict_file", click.Path(path_type=Path), "SQuAD's JSON, to answer.")
@flag("init_checkpoint", str, "The checkpoint to start from: a prefix, a directory, or what else minibert reads.")
@flag("do_lower_case", Boolean(), "[default: true]")
@flag("max_seq_length", int, "[default: 384]")
@flag("doc_stride", int, "Tokens from one window of a long text to the next.  [default: 128]")
@flag("max_query_length", int, "[default: 64]")
@flag("do_train", Boolean(), "[default: false]")
@flag("do_predict", Boolean(), "[default: false]")
@flag("train_batch_size", int, "[default: 32]")
@flag("learning_rate", float, "[default: 5e-5]")
@flag("num_train_epochs", float, "[default: 3]")
@flag("warmup_proportion", float, "[default: 0.1]")
@flag("save_checkpoints_steps", int, "[default: 1000]")
@flag("n_best_size", int, "[default: 20]")
@flag("max_answer_length", int, "[default: 30]")
@flag("version_2_with_negative", Boolean(), "SQuAD 2.0: questions may have no answer.  [default: false]")
@flag("null_score_diff_threshold", float, "[default: 0]")
@flag("verbose_logging", Boolean(), "Name every question that is left out.  [default: false]")
@flag("use_tpu", Boolean(), "Compute on the TPU of this machine, through JAX: docs/tpu.md.  [default: false]")
@unused
def run_squad(**flags: Any) -> None:
    """Google's run_squad.py: its flags, its files.

    A checkpoint in --output_dir comes before --init_checkpoint, and training goes on from it; training that has had
    all its steps is skipped. true, True and 1 are the same.
    """
    from minibert.progress import Reporter
    from minibert.squad import estimator

    estimator.run_squad(estimator.Flags(**given(flags)), Reporter(quiet=False))
