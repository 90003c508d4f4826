"""Runs what `minibert tpu export` wrote, with jax and numpy and nothing of minibert:

    python run.py INPUTS.npz ... RESULTS.npz

A file of inputs is a call of the program, with the arrays that manifest.json lists under "inputs"; example.npz is one.
Each call prints a line; all that was returned goes to RESULTS.npz, in the order of the calls. Training goes on from
call to call, and what it ends with goes there too, as state/NAME.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


def tensors(path):
    """The float32 arrays of a safetensors file by name, as views of the file."""
    size = int.from_bytes(np.fromfile(path, np.uint8, 8).tobytes(), "little")
    header = json.loads(np.fromfile(path, np.uint8, size, offset=8).tobytes())
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    found = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: data[slice(*e["data_offsets"])].view("f4").reshape(e["shape"]) for name, e in found.items()}


def main(folder, *paths):
    """Calls the program in `folder` with all files of inputs; the last path is where the results go."""
    if len(paths) < 2:
        raise ValueError("give one or more files of inputs, such as example.npz, and one for the results")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name, digest in manifest["files"].items():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{folder / name} is damaged: export again")
    sys.path.append(str(folder / "flatbuffers.zip"))  # jax.export reads with it and does not bring it
    import jax.export

    call = jax.export.deserialize(bytearray((folder / "program").read_bytes())).call
    call, results = jax.jit(call, donate_argnums=0 if manifest["what"] == "train" else ()), []
    saved = tensors(folder / "parameters.safetensors")
    state = {n: saved[n] if n in saved else np.zeros(e["shape"], e["dtype"]) for n, e in manifest["state"].items()}
    state, new = jax.device_put(state), {}
    for path in paths[:-1]:
        with np.load(path, allow_pickle=False) as file:
            inputs = {name: file[name].astype(entry["dtype"]) for name, entry in manifest["inputs"].items()}
        new, found = call(state, inputs)
        state = new or state  # a prediction changes nothing
        results.append({name: np.atleast_1d(value) for name, value in found.items()})
        print(json.dumps({"inputs": str(path)} | {n: v.tolist() for n, v in results[-1].items() if v.size <= 100}))
    arrays = {name: np.concatenate([found[name] for found in results]) for name in results[0]}
    np.savez(paths[-1], **arrays | {f"state/{name}": value for name, value in new.items()})


if __name__ == "__main__":
    try:
        main(Path(__file__).parent, *sys.argv[1:])
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"run.py: {error}")
