"""What is in a checkpoint: format, config, every tensor; what a BERT of that config would lack or have left over.

Works for files that are no BERT too: these have no config and nothing is missing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from minibert import files
from minibert.checkpoint import config_path, names, sources
from minibert.checkpoint.tensors import DTYPES
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError


def inspect(source: Path) -> dict[str, Any]:
    """A description as plain data; every tensor is read, and with it every checksum that the format has.

    {format, path, sha256, config, note, parameters, bytes, tensors: [{name, shape, dtype, bytes}], missing, left_over,
    damaged}: `note` says why the config describes no BERT, `missing` and `left_over` compare with the config's BERT,
    `damaged` has a line for each tensor that cannot be read.
    """
    found = sources.find(source)
    entries = found.stored.entries
    raw, config, note = _config(found.folder)
    wanted = set(names.shapes(config)) if config else set()
    damaged = []
    for entry in entries.values():
        if entry.dtype in DTYPES:
            try:
                entry.stored()
            except CheckpointError as error:
                damaged.append(str(error))
    return {
        "format": found.stored.format,
        "path": str(found.path),
        "sha256": files.sha256(found.file),
        "config": raw,
        "note": note,
        "parameters": sum(math.prod(entry.shape) for entry in found.tensors.values()),
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "tensors": [
            {"name": name, "shape": list(entry.shape), "dtype": entry.dtype, "bytes": entry.nbytes}
            for name, entry in entries.items()
        ],
        "missing": sorted(wanted - found.tensors.keys()),
        "left_over": sorted(name for name in found.tensors if config and name not in wanted and name not in names.HEAD),
        "damaged": damaged,
    }


def _config(folder: Path) -> tuple[dict[str, Any] | None, BertConfig | None, str]:
    """The config as it stands beside the weights, the BERT that it describes, and why it describes none."""
    path = config_path(folder)
    if path is None:
        return None, None, "no config beside the weights"
    try:
        raw = files.read_json(path, ConfigError)
    except ConfigError as error:
        return None, None, str(error)
    try:
        return raw, BertConfig.from_dict(raw, str(path)), ""
    except ConfigError as error:
        return raw, None, str(error)
