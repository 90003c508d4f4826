"""A model as a program: StableHLO that JAX runs on TPUs, CPUs and GPUs without this package.

program                   what jax.export makes of an update or of the logits, for batches of any size
parameters.safetensors    float32, a parameter of all layers in one array; moments begin at zero and are not there
manifest.json             the config, names, shapes and types of all that goes in and comes out, versions, checksums
run.py, flatbuffers.zip   minibert/tpu/run.py, and what jax.export needs to read its own files
example.npz               inputs to try it with
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from minibert import checkpoint, files, hub
from minibert.checkpoint import huggingface, names
from minibert.checkpoint.tensors import of_array
from minibert.config import BertConfig
from minibert.errors import BackendError, CheckpointError, ConfigError, MinibertError, RunError
from minibert.random import initial_weights
from minibert.runs import read_description
from minibert.squad.answering import is_reader
from minibert.tpu import model, training
from minibert.tpu import run as standalone
from minibert.tpu.model import Params

PLATFORMS = ("tpu", "cpu", "cuda")
PARAMETERS, READER = "parameters.safetensors", "flatbuffers.zip"
LENGTHS = {False: 128, True: 384}  # the chapter's, for a classifier and for what marks answers
Flat = dict[str, Any]  # arrays or their shapes by name


@dataclass(frozen=True)
class Source:
    """What is exported: config and tensors, whether the head marks `spans`, and the length of its examples."""

    config: BertConfig
    arrays: dict[str, np.ndarray]
    spans: bool
    length: int

    @property
    def head(self) -> int | str:
        """As model.shapes takes it."""
        return model.SPANS if self.spans else len(self.arrays["classifier.bias"])


def export(
    out: Path,
    what: str,
    checkpoint: str = "base",
    task: str | None = None,
    max_seq_length: int | None = None,
    recompute: str = "none",
    precision: str = "fp32",
) -> None:
    """Writes the new folder `out`, whole or not at all. `what`: train or predict; the rest is as for the command."""
    if out.parts[:1] == ("gs:",):
        address = f"gs://{'/'.join(out.parts[1:])}"
        raise ConfigError(f"{address}: an export is written to a local folder; copy it to the bucket when it is there")
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already; give a new folder")
    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")  # the program is traced, not run: no device is looked for
    zipped = _flatbuffers()
    source = _source(checkpoint, what, task, max_seq_length)
    state: dict[str, Params] = {"params": model.from_arrays(source.arrays)}
    parameters = _named(state)
    if what == "train":
        shapes = model.shapes(source.config, source.head)
        state |= {"m": shapes, "v": shapes}
    call = _call(what, source.config, jax.tree.structure(state), list(_named(state)), recompute == "layers", precision)
    inputs = _inputs(source, what == "train")
    given = _shapes(_named(state)), _shapes(inputs, symbolic=True)
    with _new_folder(out) as folder:
        program = jax.export.export(jax.jit(call), platforms=PLATFORMS)(*given)
        entries = {name: of_array(name, array) for name, array in parameters.items()}
        huggingface.write(folder / PARAMETERS, entries, {})
        files.write_whole(folder / "program", bytes(program.serialize()))
        files.write_whole(folder / READER, zipped)
        files.write_whole(folder / "run.py", Path(standalone.__file__).read_bytes())
        files.write_whole(folder / "example.npz", lambda file: np.savez(file, **inputs))
        manifest = {
            "minibert_export": 1, "what": what, "spans": source.spans, "max_seq_length": source.length,
            "precision": precision, "recompute": recompute, "platforms": PLATFORMS,
            "config": source.config.to_dict(source.spans), "versions": _versions(),
            "state": _described(given[0]), "inputs": _described(given[1]),
            "results": _described(jax.tree.unflatten(program.out_tree, program.out_avals)[-1]),
            "files": {name: files.sha256(folder / name) for name in ("program", PARAMETERS, READER)},
        }  # fmt: skip
        files.write_whole(folder / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")


def run(folder: Path, *paths: str) -> None:
    """What the folder's run.py does, in this process; MinibertError where that cannot be."""
    try:
        standalone.main(folder, *paths)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise MinibertError(f"{folder}: {error}") from None


def _source(name: str, what: str, task: str | None, length: int | None) -> Source:
    """The checkpoint or run of that name, with a new head where there is none and one is to be trained."""
    path = hub.resolve(name)
    description = read_description(path)
    if description and not description["finished"]:
        raise RunError(f"{path}: the run is not finished; go on with minibert finetune ... --resume")
    spans = task == "squad" if task else is_reader(path)
    found = checkpoint.load(path, spans=spans)
    arrays = dict(found.arrays)
    if found.missing_head:
        if what == "predict":
            raise CheckpointError(f"{name}: has no head to predict with; give --checkpoint a run, or --what train")
        shapes = names.shapes(found.config, 2, spans)
        head = names.SPANS if spans else names.HEAD
        arrays |= initial_weights({n: shapes[n] for n in head}, found.config.initializer_range, seed=1)
    most = found.config.max_position_embeddings
    if length is not None and not 3 <= length <= most:
        raise ConfigError(f"--max-seq-length {length}: give 3 to {most}")
    usual = description["settings"]["max_seq_length"] if description else LENGTHS[spans]
    return Source(found.config, arrays, spans, length or min(usual, most))


def _inputs(source: Source, training: bool) -> Flat:
    """Two examples of random tokens, the first of full length: shapes and types of what goes in, and values to try."""
    rng, (rows, length) = np.random.default_rng(1), (2, source.length)
    lengths = np.array([length, max(3, length // 2)], np.int32)
    real = np.arange(length) < lengths[:, None]
    found: Flat = {
        "ids": np.where(real, rng.integers(0, source.config.vocab_size, (rows, length)), 0).astype(np.int32),
        "segments": np.zeros((rows, length), np.int32),
        "lengths": lengths,
    }
    if training:
        labels = np.array([[0, 0], [1, 2]], np.int32) if source.spans else np.arange(rows, dtype=np.int32)
        found |= {
            "labels": labels.astype(np.float32) if source.head == 1 else labels % source.length,
            "examples": np.arange(rows, dtype=np.int32),
            "weights": np.full(rows, 1 / rows, np.float32),
            "seed": np.uint32(1),
            "step": np.uint32(0),
            "rate": np.float32(2e-5),
        }
    return found


def _call(
    what: str, config: BertConfig, structure: Any, order: list[str], recompute: bool, precision: str
) -> Callable[[Flat, Flat], tuple[Flat, Flat]]:
    """What is exported: (state, inputs) to (the state after it, results), all of them arrays by name."""

    def predict(state: Flat, inputs: Flat) -> tuple[Flat, Flat]:
        (params,) = nested(state).values()
        batch = inputs | {"examples": inputs["lengths"]}  # which only dropout would look at
        return state, {"logits": model.logits(params, batch, config, precision=precision)}

    def train(state: Flat, inputs: Flat) -> tuple[Flat, Flat]:
        batch = {name: array[None] for name, array in inputs.items() if array.ndim}
        key = jnp.stack([inputs["seed"], jnp.uint32(0), inputs["step"] * 512])  # as dropout.pack has it
        new, (loss, norm) = training.update(
            nested(state), batch, key, inputs["rate"], jnp.ones(2),
            find=lambda params, batch, key: training.gradients(params, batch, config, key, recompute, precision),
        )  # fmt: skip
        return _named(new), {"loss": loss, "norm": norm}

    def nested(state: Flat) -> dict[str, Params]:
        return jax.tree.unflatten(structure, [state[name] for name in order])

    return train if what == "train" else predict


def _named(tree: Any) -> Flat:
    """The leaves of nested dicts by their path: params/encoder.layer/intermediate.dense.bias."""
    return {"/".join(step.key for step in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _shapes(arrays: Flat, symbolic: bool = False) -> Flat:
    """Shapes and types of arrays; `symbolic`: their first axis has any length, b, the same in all of them."""
    (b,) = jax.export.symbolic_shape("b")
    return {
        name: jax.ShapeDtypeStruct((b, *array.shape[1:]) if symbolic and array.shape else array.shape, array.dtype)
        for name, array in arrays.items()
    }


def _described(shapes: Flat) -> dict[str, Any]:
    return {
        name: {"shape": [size if isinstance(size, int) else str(size) for size in one.shape], "dtype": str(one.dtype)}
        for name, one in shapes.items()
    }


def _flatbuffers() -> bytes:
    """The package of that name, without the part that nothing here uses, as a zip file that Python imports from."""
    try:
        import flatbuffers
    except ImportError:
        raise BackendError('exporting needs the package flatbuffers: pip install ".[jax]" in the checkout') from None
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(Path(flatbuffers.__file__).parent.glob("*.py")):
            if path.name != "flexbuffers.py":
                file.writestr(zipfile.ZipInfo(f"flatbuffers/{path.name}"), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("minibert", "jax", "jaxlib", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout that is not installed
            found[name] = "unknown"
    return found


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `out` when it is full and is removed where anything fails."""
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    with files.one_line(out, "write"):
        folder.mkdir(parents=True)
        try:
            yield folder
            os.replace(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
