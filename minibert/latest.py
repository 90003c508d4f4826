"""TensorFlow's file `checkpoint`: the names of the checkpoints in its folder, and which of them is the newest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from minibert import files
from minibert.errors import CheckpointError

NAME = "checkpoint"


def newest(folder: Path) -> str | None:
    """The prefix in `folder` that its file `checkpoint` names as the newest; None where there is no such file.

    Of a path, which TensorFlow writes when another folder is meant or was, only the last part counts.
    """
    found = _paths(folder, b"model_checkpoint_path")
    if found is None:
        return None
    if not found:
        raise CheckpointError(f"{folder / NAME}: does not name a checkpoint: give the path of its .index file")
    return found[-1]


def kept(folder: Path) -> list[str]:
    """All prefixes in `folder` that its file `checkpoint` names as standing there, the oldest first."""
    return _paths(folder, b"all_model_checkpoint_paths") or []


def _paths(folder: Path, key: bytes) -> list[str] | None:
    """The last parts of the paths that the file `checkpoint` has by this name; None where there is no such file."""
    path = folder / NAME
    with files.one_line(path, "read", CheckpointError):
        if not path.is_file():
            return None
        with files.open_read(path, CheckpointError) as file:
            text = file.read(1 << 20)
    found = re.findall(rb"^[ \t]*" + key + rb'[ \t]*:[ \t]*"((?:[^"\\\n]|\\.)*)"', text, re.MULTILINE)
    return [_file_name(quoted, path) for quoted in found]


def _file_name(quoted: bytes, path: Path) -> str:
    """The last part of a path that `path` has between quotes."""
    try:
        name = re.split(r"[/\\]", re.sub(rb"\\([0-7]{1,3}|.)", _unescaped, quoted).decode())[-1]
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: does not name a checkpoint: give the path of its .index file") from None
    if name in ("", ".", "..") or "\0" in name or Path(name).name != name:
        raise CheckpointError(f"{path}: names {name[:200]!r}, which cannot be a file: give the path of its .index file")
    return name


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code, 8) & 0xFF]) if code[:1].isdigit() and code[:1] < b"8" else code


def write(folder: Path, newest: str, kept: Sequence[str]) -> None:
    """Writes the file `checkpoint`: `newest`, a prefix in `folder`, and all that stand there, the oldest first."""
    lines = [f'model_checkpoint_path: "{_escaped(newest)}"']
    lines += [f'all_model_checkpoint_paths: "{_escaped(name)}"' for name in kept]
    files.write_whole(folder / NAME, "".join(line + "\n" for line in lines).encode())


def _escaped(name: str) -> str:
    """Text of the text format: what is not plain ASCII, quotes and backslashes as octal numbers of bytes."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}" for byte in name.encode()
    )
