"""minibert convert: a checkpoint in another format."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  minibert convert uncased_L-12_H-768_A-12.zip bert-base --to hf")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(["hf", "tensorflow", "torch"]), required=True,
              help="hf: model.safetensors. tensorflow: bert_model.ckpt, as Google published BERT. torch: "
              "pytorch_model.bin.")  # fmt: skip
@click.option("--optimizer", is_flag=True, help="Carry Adam's moments over too.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names in DST, and its tokenizer; "
              "remove moments of other weights.")  # fmt: skip
def convert(source: str, target: Path, form: str, optimizer: bool, overwrite: bool) -> None:
    """Writes the checkpoint SRC into DST in another format.

    DST is a folder; every value is equal to the last bit. SRC is a directory, a file, TensorFlow's prefix
    (bert_model.ckpt), Google's zip, a hub id or an alias. The format is found by looking into it. Config and vocabulary
    come along.
    """
    from minibert import hub, mirror, remote
    from minibert.checkpoint import conversion
    from minibert.progress import Transfer

    with Transfer() as progress:
        path = hub.resolve(source, progress=progress)
    standing = remote.state(remote.address(target)).files if remote.is_address(target) else ()
    with mirror.output(target, overwrite, conversion.BESIDE.__contains__) as folder:
        done = conversion.convert(path, folder, form, optimizer, overwrite, standing)
    click.echo(f"{remote.name(done.folder)}: {done.tensors} tensors, {done.bytes / 1e6:,.1f} MB")
    if done.missing:
        click.echo(f"not in {source}: {', '.join(done.missing)}", err=True)
