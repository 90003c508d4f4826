"""minibert run-classifier: Google's run_classifier.py, flag by flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

# What run_classifier.py has flags for and this engine no use.
UNUSED = ("predict_batch_size", "iterations_per_loop", "tpu_name", "tpu_zone", "gcp_project", "master", "num_tpu_cores")
BOOLEANS = ("do_lower_case", "do_train", "do_eval", "do_predict", "use_tpu")


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
        written = []
        for arg in args:
            name = arg.lstrip("-") if arg.startswith("-") else ""
            if name in BOOLEANS:
                arg = f"--{name}=true"
            elif name.startswith("no") and name[2:] in BOOLEANS:
                arg = f"--{name[2:]}=false"
            elif name and not arg.startswith("--"):
                arg = f"--{name}"  # one dash will do
            written.append(arg)
        return super().parse_args(context, written)


def _flag(name: str, kind: Any, text: str, **more: Any) -> Any:
    return click.option(f"--{name}", name, type=kind, help=text, **more)


@click.command(
    cls=GoogleCommand, name="run-classifier",
    epilog="\b\nExample:\n  minibert run-classifier --task_name=MRPC --do_train=true --do_eval=true \\\n"
    "    --data_dir=glue/MRPC --vocab_file=bert/vocab.txt --bert_config_file=bert/bert_config.json \\\n"
    "    --init_checkpoint=bert/bert_model.ckpt --output_dir=/tmp/mrpc_output/",
)  # fmt: skip
@_flag("task_name", str, "cola, mnli, mrpc, xnli, or another task of minibert's.", required=True)
@_flag("data_dir", click.Path(path_type=Path), "The task's folder.", required=True)
@_flag("bert_config_file", click.Path(path_type=Path), "The model's bert_config.json.", required=True)
@_flag("vocab_file", click.Path(path_type=Path), "The model's vocab.txt.", required=True)
@_flag("output_dir", click.Path(path_type=Path), "Where checkpoints and results go, or went.", required=True)
@_flag("init_checkpoint", str, "The checkpoint to start from: a prefix, a directory, or what else minibert reads.")
@_flag("do_lower_case", Boolean(), "[default: true]")
@_flag("max_seq_length", int, "[default: 128]")
@_flag("do_train", Boolean(), "[default: false]")
@_flag("do_eval", Boolean(), "[default: false]")
@_flag("do_predict", Boolean(), "[default: false]")
@_flag("train_batch_size", int, "[default: 32]")
@_flag("eval_batch_size", int, "Examples over which `loss` averages.  [default: 8]")
@_flag("learning_rate", float, "[default: 5e-5]")
@_flag("num_train_epochs", float, "[default: 3]")
@_flag("warmup_proportion", float, "[default: 0.1]")
@_flag("save_checkpoints_steps", int, "[default: 1000]")
@_flag("use_tpu", Boolean(), "[default: false]")
@_flag("predict_batch_size", int, "Means nothing here.")
@_flag("iterations_per_loop", int, "Means nothing here.")
@_flag("tpu_name", str, "Means nothing without a TPU.")
@_flag("tpu_zone", str, "Means nothing without a TPU.")
@_flag("gcp_project", str, "Means nothing without a TPU.")
@_flag("master", str, "Means nothing without a TPU.")
@_flag("num_tpu_cores", int, "Means nothing without a TPU.")
def run_classifier(**flags: Any) -> None:
    """Google's run_classifier.py: the same flags, the same files in --output_dir.

    A checkpoint in --output_dir comes before --init_checkpoint, and training goes on from it; training that has had
    all its steps is skipped. true, True and 1 are the same.
    """
    from minibert import estimator
    from minibert.progress import Reporter

    given = {name: value for name, value in flags.items() if value is not None}
    for name in UNUSED:
        if given.pop(name, None) is not None:
            click.echo(f"--{name} means nothing here", err=True)
    results = estimator.run_classifier(estimator.Flags(**given), Reporter(quiet=False))
    if results:
        click.echo("***** Eval results *****")
        for name in sorted(results):
            click.echo(f"  {name} = {results[name]}")
