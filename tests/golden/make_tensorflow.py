"""Writes TensorFlow's checkpoints into tensorflow/, for tests/test_tensorflow.py, and compares TensorFlow with us.

    pip install tensorflow-cpu==2.21.0
    pip install -e .
    python tests/golden/make_tensorflow.py                   # writes the golden files and what they hold
    python tests/golden/make_tensorflow.py --base PREFIX     # writes BERT-Base with Adam's slots, 1.3 GB
    python tests/golden/make_tensorflow.py --check PREFIX... # has TensorFlow and minibert read each other's

A check reads a checkpoint with both, then has minibert write it, once with Snappy blocks in the index, and
TensorFlow read that. TensorFlow itself writes no Snappy blocks, in checkpoints of version 1 neither.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from minibert import latest, models
from minibert.checkpoint import names
from minibert.checkpoint import tensorflow as ours
from minibert.checkpoint.table import read_table, write_table
from minibert.checkpoint.tensors import DTYPES
from minibert.config import BertConfig

FOLDER = Path(__file__).parent / "tensorflow"
TINY = BertConfig(
    vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=12,
)  # fmt: skip
v1 = tf.compat.v1


def save(prefix: Path, tensors: Mapping[str, tf.Tensor]) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[*tensors],
        shape_and_slices=[""] * len(tensors),
        tensors=[*tensors.values()],
    )


def bert(config: BertConfig, seed: int) -> dict[str, np.ndarray]:
    """A BERT with a head for 2 classes as run_classifier.py leaves it: Adam's slots, the step, all sorted by name."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for row in names.TABLE:
        for layer in range(config.num_hidden_layers if "{n}" in row.name else 1):
            shape = names.shapes(config, 2)[row.name.format(n=layer)]
            for slot in ("", *(f"/{slot}" for slot in names.SLOTS)):
                array = rng.standard_normal(shape[::-1] if row.transposed else shape, np.float32)
                tensors[row.tensorflow.format(n=layer) + slot] = array
    return dict(sorted({**tensors, names.GLOBAL_STEP: np.array(343, np.int64)}.items()))


def every_type() -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(1)
    tensors = {}
    for name, dtype in DTYPES.items():
        bits = rng.integers(0, 2 if name == "bool" else 256, (3, 5 * dtype.itemsize), np.uint8)
        tensors[f"types/{name}"] = tf.constant(bits.view(dtype))  # any bits: NaN and infinity too
    return tensors | {
        "odd/string": tf.constant(["two", "strings"]),
        "odd/complex64": tf.constant([1 + 2j], tf.complex64),
        "odd/scalar": tf.constant(2.5),
        "odd/empty": tf.zeros([3, 0, 2]),
        "odd/eight_axes": tf.range(6.0)[None, :, None, None, None, None, None, None],
        "odd/größe": tf.constant([7], tf.int16),
        "odd/" + 300 * "long": tf.constant([8], tf.uint8),
    }


def save_sharded(prefix: Path, tensors: Mapping[str, np.ndarray], shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"part-{i}" for i in range(shards)]
        for i, part in enumerate(parts):
            save(part, {name: tf.constant(tensors[name]) for name in [*tensors][i::shards]})
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[str(part) for part in parts], destination_prefix=str(prefix))


def save_partitioned(prefix: Path) -> None:
    """Variables in slices along an axis, each on a device of its own, which writes a shard of its own."""
    rng = np.random.default_rng(2)
    with tf.Graph().as_default():
        for name, shape, axis, count in (
            ("embeddings", (10, 4), 0, 3),
            ("kernel", (6, 5), 1, 2),
            ("long", (300,), 0, 3),  # where slices start takes one byte or two in their keys
            ("whole", (2, 2), 0, 1),
        ):
            values = tf.constant(rng.standard_normal(shape, np.float32))
            devices = itertools.cycle(f"/cpu:{i}" for i in range(3))
            with (
                v1.variable_scope("parts", partitioner=v1.fixed_size_partitioner(count, axis)),
                v1.device(lambda op, devices=devices: next(devices) if op.type.startswith("Var") else ""),
            ):
                v1.get_variable(name, initializer=values)
        saver = v1.train.Saver(sharded=True)
        with v1.Session(config=v1.ConfigProto(device_count={"CPU": 3})) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(prefix), write_meta_graph=False, write_state=False)


def save_grid(prefix: Path) -> None:
    """Slices that a partitioner does not make: by two axes, and with "-", all of an axis."""
    grid = np.random.default_rng(3).standard_normal((4, 600), np.float32)
    places = {"0,2:0,600": grid[:2], "2,2:0,500": grid[2:, :500], "2,2:500,100": grid[2:, 500:]}
    rows = {"0,3:-": grid[:3], "3,1:-": grid[3:]}
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=["grid"] * 3 + ["rows"] * 2,
        shape_and_slices=[f"4 600 {place}" for place in [*places, *rows]],
        tensors=[*places.values(), *rows.values()],
    )


def described(prefix: Path) -> dict[str, dict[str, object]]:
    """What TensorFlow reads: by name its type, shape and the SHA-256 of its bytes, none for those we cannot read."""
    reader = tf.train.load_checkpoint(str(prefix))
    dtypes, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    result: dict[str, dict[str, object]] = {}
    for name in sorted(shapes):
        dtype = dtypes[name].name.replace("half", "float16")
        array = reader.get_tensor(name)
        digest = hashlib.sha256(np.ascontiguousarray(array)).hexdigest() if dtype in DTYPES else None
        result[name] = {"dtype": dtype, "shape": shapes[name], "sha256": digest}
    return result


def make() -> None:
    FOLDER.mkdir(exist_ok=True)
    tiny = bert(TINY, 0)
    save(FOLDER / "bert.ckpt", tiny)
    save_sharded(FOLDER / "sharded.ckpt", tiny, 3)
    save(FOLDER / "types.ckpt", every_type())
    save_partitioned(FOLDER / "partitioned.ckpt")
    save_grid(FOLDER / "grid.ckpt")
    v1.train.update_checkpoint_state(str(FOLDER), "/runs/größe.ckpt-2", ["bert.ckpt"])
    state = {
        "versions": f"tensorflow {tf.__version__}, numpy {np.__version__}",
        "checkpoints": {path.stem: described(path.with_suffix("")) for path in sorted(FOLDER.glob("*.index"))},
    }
    text = json.dumps(state, indent=1, ensure_ascii=False)
    (FOLDER / "checkpoints.json").write_text(text + "\n", encoding="utf-8")


def check(prefix: Path) -> None:
    read = ours.read(prefix)
    reader = tf.train.load_checkpoint(str(prefix))
    if {*read.entries} != {*reader.get_variable_to_shape_map()}:
        raise SystemExit(f"{prefix}: minibert lists other tensors than TensorFlow")
    entries = {name: entry for name, entry in read.entries.items() if entry.dtype in DTYPES}
    for name, entry in entries.items():
        same(prefix, name, entry.stored(), reader.get_tensor(name))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.ckpt"
        ours.write(copy, entries)
        index = Path(f"{copy}.index")
        for compress in (False, True):
            table = read_table(index.read_bytes(), str(index))
            index.write_bytes(write_table(table, compress))
            reader = tf.train.load_checkpoint(str(copy))
            if {*entries} != {*reader.get_variable_to_shape_map()}:
                raise SystemExit(f"{prefix}: TensorFlow lists other tensors than minibert wrote")
            for name, entry in entries.items():
                same(copy, name, entry.stored(), reader.get_tensor(name))
        latest.write(Path(folder), copy.name, [copy.name])
        if tf.train.latest_checkpoint(folder) != str(copy) or latest.newest(Path(folder)) != copy.name:
            raise SystemExit(f"{prefix}: TensorFlow does not find the latest checkpoint")
    size = sum(entry.nbytes for entry in entries.values())
    print(f"{prefix}: {len(entries)} tensors, {size} bytes: equal to the bit in both directions, Snappy too")


def same(prefix: Path, name: str, mine: np.ndarray, theirs: np.ndarray) -> None:
    theirs = np.asarray(theirs)  # a scalar is none
    if mine.dtype != theirs.dtype or mine.shape != theirs.shape or mine.tobytes() != theirs.tobytes():
        raise SystemExit(f"{prefix}: tensor {name} differs")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        for argument in sys.argv[2:]:
            check(Path(argument))
    elif sys.argv[1:2] == ["--base"]:
        save(Path(sys.argv[2]), bert(models.config("base"), 0))
    else:
        make()
