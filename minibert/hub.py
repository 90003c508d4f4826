"""Checkpoints by name: an alias such as `base`, a directory, or a hub id, fetched through huggingface_hub.

HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minibert import files
from minibert.errors import CheckpointError, ConfigError, DownloadError

# SHA-256 of what is published; a file that differs is refused.
_UNCASED = {"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"}
_CASED = {"vocab.txt": "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"}
_MULTILINGUAL = {"vocab.txt": "fe0fda7c425b48c516fc8f160d594c8022a0808447475c1a7c6d6479763f310c"}
_MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    **_UNCASED,
}


class Source(NamedTuple):
    repository: str
    checksums: dict[str, str]  # file name: SHA-256


ALIASES = {
    "base": Source("google-bert/bert-base-uncased", _UNCASED),
    "large": Source("google-bert/bert-large-uncased", _UNCASED),
    "base-cased": Source("google-bert/bert-base-cased", _CASED),
    "large-cased": Source("google-bert/bert-large-cased", _CASED),
    "multilingual": Source("google-bert/bert-base-multilingual-cased", _MULTILINGUAL),
    "chinese": Source("google-bert/bert-base-chinese", {}),
    "tiny": Source("google/bert_uncased_L-2_H-128_A-2", {}),
    "mini": Source("google/bert_uncased_L-4_H-256_A-4", {}),
    "small": Source("google/bert_uncased_L-4_H-512_A-8", {}),
    "medium": Source("google/bert_uncased_L-8_H-512_A-8", {}),
    "minilm": Source("sentence-transformers/all-MiniLM-L6-v2", _MINILM),
}

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_WANTED = (
    _CONFIG,
    *_WEIGHTS,
    "model-*-of-*.safetensors",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def resolve(name: str, cache: Path | None = None) -> Path:
    """What `checkpoint.load` reads for `name`: an alias, a path, a hub id as OWNER/NAME, or random:SHAPE.

    An alias comes before a path: `./base` is the folder. A complete copy in the cache is used without asking
    the network, an incomplete one is continued; `cache` is huggingface_hub's unless given. Raises
    CheckpointError where the name means nothing or the repository has no weights that can be read,
    DownloadError where the network or a checksum fails.
    """
    if name not in ALIASES and (name.startswith("random:") or os.path.exists(name)):
        return Path(name)
    source = ALIASES.get(name) or Source(name, {})
    if not _HUB_ID.fullmatch(source.repository):
        raise CheckpointError(f"{name}: is no folder, hub id (OWNER/NAME) or alias: choose from {', '.join(ALIASES)}")
    folder = _snapshot(source.repository, cache, local=True)
    if folder is None or not _complete(folder):
        folder = _snapshot(source.repository, cache, local=False)
    assert folder is not None
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise CheckpointError(
            f"{source.repository}: has no model.safetensors on the hub; other formats (pytorch_model.bin, "
            "TensorFlow) are not read yet: choose another checkpoint or convert it"
        )
    for file, known in source.checksums.items():
        path = folder / file
        if path.exists() and (got := files.sha256(path)) != known:
            raise DownloadError(
                f"{path}: SHA-256 {got} is not the published {known}: delete {folder.parent.parent} and try again"
            )
    return folder


def _complete(folder: Path) -> bool:
    """Whether an earlier download got everything that loading needs; what is there is whole."""
    words = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    if not words or not (folder / _CONFIG).is_file():
        return False
    if (folder / _WEIGHTS[0]).is_file():
        return True
    index = folder / _WEIGHTS[1]
    if not index.is_file():
        return False
    shards = files.read_json(index, CheckpointError).get("weight_map")
    return isinstance(shards, dict) and all((folder / str(shard)).is_file() for shard in shards.values())


def _snapshot(repository: str, cache: Path | None, local: bool) -> Path | None:
    """The snapshot in the cache (None where there is none), or with `local` false from the hub."""
    import huggingface_hub
    from huggingface_hub import errors

    # The library that carries HTTP differs between versions of huggingface_hub: its own errors name it.
    # RuntimeError is what hf_xet, which carries large files, raises for whatever goes wrong.
    failures: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__)
    try:
        with _quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    repository, cache_dir=cache, allow_patterns=list(_WANTED), local_files_only=local
                )
            )
    except errors.LocalEntryNotFoundError as reason:
        if local:
            return None
        cause = _line(reason.__cause__ or reason)
        raise DownloadError(f"{repository}: cannot reach the hub ({cause}): {files.OFFLINE_HELP}") from None
    except errors.GatedRepoError:
        raise DownloadError(f"{repository}: needs its owner's permission: set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise DownloadError(
            f"{repository}: no such repository on the hub, or a private one: correct the name or set HF_TOKEN"
        ) from None
    except failures as reason:
        raise DownloadError(
            f"{repository}: download failed ({_line(reason)}): try again; {files.OFFLINE_HELP}"
        ) from None


def _line(reason: BaseException) -> str:
    return " ".join(str(reason).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars unless on a terminal, and no log lines about retries: errors are told in one line."""
    from huggingface_hub import constants, utils

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    asked = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the environment, which then decides
    hide = not (asked or sys.stderr.isatty() or utils.are_progress_bars_disabled())
    logger.setLevel(logging.ERROR)
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            utils.enable_progress_bars()


def download(names: list[str], progress: files.Progress | None = None) -> dict[str, Path]:
    """Fetches checkpoints (aliases, hub ids) and tasks' data ahead of use; returns where each one lies."""
    from minibert import datasets

    for name in names:  # all of them first: a typo should not wait for a gigabyte
        if datasets.find(name) is None and name not in ALIASES and not _HUB_ID.fullmatch(name):
            raise ConfigError(
                f"{name}: is no checkpoint (OWNER/NAME, {', '.join(ALIASES)}) and no task ({', '.join(datasets.TASKS)})"
            )
    return {name: datasets.fetch_task(name, progress) if datasets.find(name) else resolve(name) for name in names}
