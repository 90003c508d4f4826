"""Runs what `minibert tpu export` wrote, with jax and numpy and nothing of minibert:

    python run.py INPUTS.npz ... RESULTS.npz

A file of inputs is a call, with the arrays that manifest.json lists under "inputs"; example.npz is one. A call prints a
line; its results go to RESULTS.npz, one after the other. Training goes on from call to call, and ends as state/NAME.
"""

import hashlib
import json
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np


def tensors(path):
    """The float32 arrays of a safetensors file by name, as views of the file."""
    size = int.from_bytes(np.fromfile(path, np.uint8, 8).tobytes(), "little")
    header = json.loads(np.fromfile(path, np.uint8, size, offset=8).tobytes())
    data, entries = np.memmap(path, np.uint8, "r", offset=8 + size), header.items()
    return {n: data[slice(*e["data_offsets"])].view("f4").reshape(e["shape"]) for n, e in entries if n[:2] != "__"}


def given(path, wanted):
    """The arrays of a file of inputs."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: (file[name], file[name].astype(entry["dtype"])) for name, entry in wanted.items()}
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is no .npz file with the arrays {', '.join(wanted)}") from None
    for name, (whole, array) in found.items():
        if array.dtype.kind in "iu" and not np.array_equal(whole, array):
            raise ValueError(f"{path}: {name} has numbers that are no {array.dtype}")
    return {name: array for name, (_, array) in found.items()}


def main(folder, *paths):
    """Calls the program in `folder` with all files of inputs; the last path is where the results go."""
    manifest, results = json.loads((folder / "manifest.json").read_bytes()), []
    for name, digest in manifest["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} is damaged: export again")
    sys.path.append(str(folder / "flatbuffers.zip"))  # jax.export reads with it and does not bring it
    import jax.export

    program = jax.export.deserialize(bytearray((folder / "program").read_bytes()))
    call = jax.jit(program.call, donate_argnums=0)
    saved, state = tensors(folder / "parameters.safetensors"), manifest["state"].items()
    state = jax.device_put({n: saved.get(n, np.zeros(e["shape"], e["dtype"])) for n, e in state})
    for path in paths[:-1]:
        inputs = given(path, manifest["inputs"])
        if inputs["ids"].min(initial=0) < 0 or inputs["ids"].max(initial=0) >= manifest["config"]["vocab_size"]:
            raise ValueError(f"{path}: ids are from 0 to {manifest['config']['vocab_size'] - 1}")
        state, found = call(state, inputs)
        results.append({name: np.atleast_1d(value) for name, value in found.items()})
        told = json.dumps({"inputs": path} | {n: v.tolist() for n, v in results[-1].items() if v.size <= 100})
        print(json.dumps(json.loads(told, parse_constant=lambda text: None)))  # NaN is no JSON
    arrays = {f"state/{n}": value for n, value in state.items() if manifest["what"] == "train"}
    arrays |= {n: np.concatenate([found[n] for found in results]) for n in results[0]}
    with open(f"{paths[-1]}.tmp", "wb") as file:
        np.savez(file, **arrays)
    os.replace(f"{paths[-1]}.tmp", paths[-1])


if __name__ == "__main__":
    try:
        main(Path(__file__).parent, *sys.argv[1:])
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"run.py: {error}" if len(sys.argv) > 2 else __doc__)
