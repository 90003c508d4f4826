"""Checkpoints by name: an alias such as `base`, a path, or a hub id, fetched through huggingface_hub; google:ALIAS.

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

from minibert import checkpoint, files, google, models, remote
from minibert.checkpoint import sources
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError, DownloadError, did_you_mean

# SHA-256 of what is published; a file that differs is refused.
_MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    **google.UNCASED,
}


class Unknown(CheckpointError):
    """A name that is no path that exists, and none that could stand for anything else."""


class Source(NamedTuple):
    repository: str
    checksums: dict[str, str]  # file name: SHA-256


ALIASES = {
    "base": Source("google-bert/bert-base-uncased", google.UNCASED),
    "large": Source("google-bert/bert-large-uncased", google.UNCASED),
    "base-cased": Source("google-bert/bert-base-cased", google.CASED),
    "large-cased": Source("google-bert/bert-large-cased", google.CASED),
    "large-wwm": Source("google-bert/bert-large-uncased-whole-word-masking", {}),
    "large-cased-wwm": Source("google-bert/bert-large-cased-whole-word-masking", {}),
    "multilingual": Source("google-bert/bert-base-multilingual-cased", google.MULTILINGUAL),
    "chinese": Source("google-bert/bert-base-chinese", google.CHINESE),
    "minilm": Source("sentence-transformers/all-MiniLM-L6-v2", _MINILM),
    **{name: Source(f"google/bert_{stem}", {}) for name, stem in google.MINIATURES.items()},
}
ALIASES |= {name: ALIASES[size] for name, size in google.NICKNAMES.items()}

_CONFIG = "config.json"
_WANTED = (
    _CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PYTORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def resolve(name: str, cache: Path | None = None, progress: files.Progress | None = None) -> Path:
    """What `checkpoint.load` reads for `name`: an alias, google:ALIAS, a path, a hub id as OWNER/NAME, random:SHAPE.

    An alias comes before a path: `./base` is the folder. A path may also be TensorFlow's prefix, and at gs://. A
    complete copy in the cache is used without asking the network, an incomplete one is continued; `cache` is
    huggingface_hub's unless given; `progress` is told of downloads from Google. Raises CheckpointError where the
    name means nothing or the repository has no weights that can be read, DownloadError where the network or a checksum
    fails, StorageError for what is not to be had at gs://.
    """
    if name.startswith(google.PREFIX):
        return google.fetch(name, progress)
    if remote.is_address(name):
        return Path(remote.checkpoint(name, progress))
    if _is_here(name):
        return Path(name)
    source = _source(name)
    folder = _snapshot(source.repository, cache, _WANTED, local=True)
    if folder is None or not _complete(folder):
        try:
            folder = _download(source.repository, cache)
        except DownloadError as error:
            if os.path.isdir(os.path.dirname(name)):  # more likely a path with a slip in it
                raise DownloadError(f"{name}: there is no such path here; as a name on the hub: {error}") from None
            raise
    for file, known in source.checksums.items():
        path = folder / file
        if path.exists() and (got := files.sha256(path)) != known:
            raise DownloadError(
                f"{path}: SHA-256 {got} is not the published {known}: delete {folder.parent.parent} and try again"
            )
    return folder


def check(name: str) -> None:
    """CheckpointError where `name` means nothing to `resolve`, or what is here is no checkpoint: all that can be told
    without a network.
    """
    if name.startswith(google.PREFIX):
        google.known(name)
    elif _is_here(name):
        checkpoint.find(name)
    elif not remote.is_address(name):
        _source(name)


def from_anywhere(name: str) -> str:
    """A name that means the same in any folder: paths become absolute."""
    kind, path = ("random:", name[7:]) if name.startswith("random:") else ("", name)
    there = os.path.exists(path) and path not in models.NAMES if kind else _is_here(path)
    return kind + os.path.abspath(path) if there else name


def _is_here(name: str) -> bool:
    """Whether it is random:SHAPE, or a path, which an alias comes before."""
    return name not in ALIASES and (
        name.startswith("random:") or os.path.exists(name) or os.path.exists(f"{name}.index")
    )


def _source(name: str) -> Source:
    """The repository of an alias or a hub id."""
    source = ALIASES.get(name) or Source(name, {})
    if name.startswith(("/", "./", "../", "runs/")):  # paths; runs/NAME could be a hub id, but nobody means one
        raise Unknown(f"{name}: there is no such file or folder: check the path")
    if not _HUB_ID.fullmatch(source.repository):
        meant = did_you_mean(name, ALIASES)
        raise Unknown(f"{name}: is no path, hub id (OWNER/NAME) or alias{meant}: choose from {_choice()}")
    return source


def config(name: str) -> BertConfig:
    """The config alone of what `resolve` finds; of a shape that ships with the package, without a network."""
    return checkpoint.read_config(f"random:{name}" if name in models.NAMES else resolve(name))


def _choice() -> str:
    return f"{google.listed(list(ALIASES))}; {google.PREFIX}ALIAS is Google's own file"


def _weights(folder: Path) -> str:
    """The name of what holds or lists the weights in a snapshot; empty where there are none."""
    return next((name for name in sources.USUAL if (folder / name).is_file()), "")


def _complete(folder: Path) -> bool:
    """Whether an earlier download got everything that loading needs; what is there is whole."""
    words = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    weights = _weights(folder)
    if not words or not weights or not (folder / _CONFIG).is_file():
        return False
    if not weights.endswith(sources.SHARDED):
        return True
    shards = files.read_json(folder / weights, CheckpointError).get("weight_map")
    # os.path's question: Path's raises for a name that is too long.
    return isinstance(shards, dict) and all(os.path.isfile(folder / shard) for shard in set(map(str, shards.values())))


def _download(repository: str, cache: Path | None) -> Path:
    """The snapshot from the hub: safetensors, or where it has none what PyTorch wrote.

    One after the other, since most repositories hold the same weights in both.
    """
    folder = _snapshot(repository, cache, _WANTED, local=False)
    if folder and "safetensors" not in _weights(folder):
        folder = _snapshot(repository, cache, _WANTED + _PYTORCH, local=False)
    if not folder or not _weights(folder):
        raise CheckpointError(
            f"{repository}: has neither model.safetensors nor pytorch_model.bin on the hub: choose another checkpoint "
            "or convert it"
        )
    return folder


def _snapshot(repository: str, cache: Path | None, patterns: tuple[str, ...], local: bool) -> Path | None:
    """The files of these patterns in the cache (None where it has none), or with `local` false from the hub."""
    import huggingface_hub
    from huggingface_hub import errors

    # The library that carries HTTP differs between versions of huggingface_hub: its own errors name it.
    # RuntimeError is what hf_xet, which carries large files, raises for whatever goes wrong.
    failures: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__)
    try:
        with _quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    repository, cache_dir=cache, allow_patterns=list(patterns), local_files_only=local
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
        raise DownloadError(f"{repository}: download failed ({_line(reason)}): {files.OFFLINE_HELP}") from None


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
        if not (datasets.known(name) or name in ALIASES or google.find(name) or _HUB_ID.fullmatch(name)):
            meant = did_you_mean(name, [*map(str.lower, datasets.NAMES), *ALIASES])
            choice = ", ".join(datasets.NAMES)
            raise ConfigError(f"{name}: is no checkpoint (OWNER/NAME, {_choice()}) and no task ({choice}){meant}")
    return {
        name: datasets.fetch(name, progress) if datasets.known(name) else resolve(name, progress=progress)
        for name in names
    }
