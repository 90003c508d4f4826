"""GLUE, XNLI, SQuAD and TriviaQA from their public addresses into the user's cache, in the layout that is read there.

MINIBERT_DATA_URL replaces the root of the addresses, for a mirror. MRPC's training and development sets are
not published as files: GLUE splits Microsoft's training file by a list of ids, which ships with the package.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from minibert import files, models, tarball, zips
from minibert.errors import DataError, DownloadError, plain

ROOT = "https://dl.fbaipublicfiles.com/"
_LIMIT = 1 << 30  # bytes of one download or of one unpacked file; the largest, MNLI.zip, has 0.3e9


class Dataset(NamedTuple):
    urls: tuple[str, ...]  # below ROOT
    wanted: tuple[str, ...]  # the files of the task's folder; all there: nothing to fetch


_SETS = ("train.tsv", "dev.tsv", "test.tsv")
_MNLI = ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv")
_MRPC = tuple(f"senteval/senteval_data/msr_paraphrase_{part}.txt" for part in ("train", "test"))

TASKS = {
    "CoLA": Dataset(("glue/data/CoLA.zip",), _SETS),
    "SST-2": Dataset(("glue/data/SST-2.zip",), _SETS),
    "MRPC": Dataset(_MRPC, _SETS),
    "STS-B": Dataset(("glue/data/STS-B.zip",), _SETS),
    "QQP": Dataset(("glue/data/QQP-clean.zip",), _SETS),
    "MNLI": Dataset(("glue/data/MNLI.zip",), _MNLI),
    "QNLI": Dataset(("glue/data/QNLIv2.zip",), _SETS),
    "RTE": Dataset(("glue/data/RTE.zip",), _SETS),
    "WNLI": Dataset(("glue/data/WNLI.zip",), _SETS),
    "AX": Dataset(("glue/data/AX.tsv",), ("AX.tsv",)),
    "XNLI": Dataset(
        ("XNLI/XNLI-1.0.zip", "XNLI/XNLI-MT-1.0.zip"),
        ("xnli.dev.tsv", "xnli.test.tsv", "multinli/multinli.train.zh.tsv"),
    ),
}

CHECKSUMS = {
    "msr_paraphrase_train.txt": "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
    "msr_paraphrase_test.txt": "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
}


SQUAD_ROOT = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SQUAD = {task: (f"train-v{v}.json", f"dev-v{v}.json") for task, v in (("squad", "1.1"), ("squad2", "2.0"))}
SQUAD_CHECKSUMS = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}

TRIVIAQA_ROOT = "https://nlp.cs.washington.edu/triviaqa/data/"
TRIVIAQA = "triviaqa-rc.tar.gz"  # about 2.7 GB; its checksum is not published
_TRIVIAQA_LIMITS = 8 << 30, 64 << 30  # bytes, packed and unpacked

NAMES = (*TASKS, *SQUAD, "triviaqa")  # all that can be fetched


def known(name: str) -> bool:
    """Whether fetch() knows a data set of that name."""
    return find(name) is not None or name.lower() in NAMES


def fetch(name: str, progress: files.Progress | None = None) -> Path:
    """The folder of a task's data, downloaded where it is not in the cache yet; `triviaqa` is to be converted then."""
    if name.lower() in SQUAD:
        return squad_files(name.lower(), progress=progress)[0].parent
    return fetch_triviaqa(progress) if name.lower() == "triviaqa" else fetch_task(name, progress)


def find(name: str) -> str | None:
    """The table's name for a task in any spelling: sst2, SST-2 and sst_2 are one."""
    return next((task for task in TASKS if plain(task) == plain(name)), None)


def cached(name: str) -> Path | None:
    """The folder of a task whose files are all in the cache, else None."""
    task = find(name)
    if task is None:
        return None
    folder = files.user_cache() / "glue" / task
    return folder if all((folder / file).is_file() for file in TASKS[task].wanted) else None


def fetch_task(name: str, progress: files.Progress | None = None) -> Path:
    """The folder of a task's data, downloaded and unpacked where it is not in the cache yet.

    `progress(file, bytes done, bytes in all or None)` is called as it goes. A checksum that is not published
    is recorded after the first good download, in checksums.json beside the data; later ones must repeat it.
    Of several processes one downloads and the others wait for it.
    """
    task = find(name)
    if task is None:
        raise DataError(f"{name}: there is no such task to download: choose from {', '.join(TASKS)}")
    root = files.user_cache() / "glue"
    with files.one_line(root, "use", DownloadError):
        if folder := cached(task):
            return folder
        with files.locked(root / ".lock"):
            return cached(task) or _fetch_task(task, root, progress)


def squad_files(
    task: str, data_dir: str | Path | None = None, progress: files.Progress | None = None, dev_only: bool = False
) -> tuple[Path, Path]:
    """SQuAD's training and development file, in `data_dir` or its folder squad, else downloaded into the cache; with
    `dev_only` the first need not be there.
    """
    train, dev = SQUAD[task]
    wanted = (dev,) if dev_only else (train, dev)
    if data_dir is None:
        folder = files.user_cache() / "squad"
        with files.one_line(folder, "use", DownloadError), files.locked(folder / ".lock"):
            for name in wanted:
                if not (folder / name).is_file():
                    url = f"{(os.environ.get('MINIBERT_DATA_URL') or SQUAD_ROOT).rstrip('/')}/{name}"
                    files.fetch(url, folder / name, known_sha256=SQUAD_CHECKSUMS[name], limit=_LIMIT, progress=progress)
        return folder / train, folder / dev
    for folder in (Path(data_dir), Path(data_dir) / "squad"):
        if all((folder / name).is_file() for name in wanted):
            return folder / train, folder / dev
    what = "is a file, not a folder; give one with" if Path(data_dir).is_file() else "needs"
    raise DataError(f"{data_dir}: {what} {' and '.join(wanted)}; minibert download {task} fetches them")


def fetch_triviaqa(progress: files.Progress | None = None) -> Path:
    """The folder of TriviaQA's `qa` and `evidence`, downloaded and unpacked where it is not in the cache yet.

    The archive's checksum is recorded after the first good download, as that of tasks is.
    """
    root = files.user_cache() / "triviaqa"
    folder = root / "rc"
    with files.one_line(root, "use", DownloadError):
        if not folder.is_dir():
            with files.locked(root / ".lock"):
                if not folder.is_dir():
                    _fetch_triviaqa(root, folder, progress)
    return folder


def _fetch_triviaqa(root: Path, folder: Path, progress: files.Progress | None) -> None:
    packed, unpacked, ledger = root / TRIVIAQA, root / ".rc.tmp", root / "checksums.json"
    recorded = files.read_json(ledger, DownloadError) if ledger.exists() else {}
    url = f"{(os.environ.get('MINIBERT_DATA_URL') or TRIVIAQA_ROOT).rstrip('/')}/{TRIVIAQA}"
    if not packed.exists():  # it is left where unpacking was interrupted or the disk was full
        files.fetch(
            url, packed, known_sha256=recorded.get(TRIVIAQA), recorded_in=ledger, limit=_TRIVIAQA_LIMITS[0],
            progress=progress,
        )  # fmt: skip
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        tarball.unpack(packed, unpacked, ("qa", "evidence"), _TRIVIAQA_LIMITS[1], progress)
        for name in ("qa", "evidence"):
            if not (unpacked / name).is_dir():
                raise DownloadError(f"{url}: holds no {name}: check the address")
        files.write_whole(ledger, json.dumps({TRIVIAQA: files.sha256(packed)}, indent=2).encode() + b"\n")
        os.replace(unpacked, folder)
    except DownloadError as error:
        if not isinstance(error.__cause__, OSError):  # the archive is to blame, not the disk
            packed.unlink()
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    packed.unlink()


def _fetch_task(task: str, root: Path, progress: files.Progress | None) -> Path:
    folder = root / task
    ledger = root / "checksums.json"
    recorded = files.read_json(ledger, DownloadError) if ledger.exists() else {}
    base = (os.environ.get("MINIBERT_DATA_URL") or ROOT).rstrip("/")
    before = dict(recorded)  # but for what turns out to be bad
    fetched = [root / url.rpartition("/")[2] for url in TASKS[task].urls]
    for url, path in zip(TASKS[task].urls, fetched, strict=True):
        published = CHECKSUMS.get(path.name)
        known = published or recorded.get(path.name)
        if path.exists() and files.sha256(path) == known:  # left where what came next was interrupted
            before.pop(path.name, None)
            continue
        recorded[path.name] = files.fetch(
            f"{base}/{url}", path, known_sha256=known,
            recorded_in=None if published else ledger, limit=_LIMIT, progress=progress,
        )  # fmt: skip
        _record(ledger, recorded)
    try:
        if task == "MRPC":
            assemble_mrpc(fetched[0], fetched[1], folder)
        elif task == "AX":
            files.write_whole(folder / "AX.tsv", fetched[0].read_bytes())
        else:
            unpack(fetched, TASKS[task].wanted, folder)
    except (DataError, DownloadError):  # the archives are to blame, not the disk
        for path in fetched:
            path.unlink()
        _record(ledger, before)
        raise
    for path in fetched:
        path.unlink()
    return folder


def _record(ledger: Path, checksums: dict[str, Any]) -> None:
    files.write_whole(ledger, json.dumps(checksums, indent=2, sort_keys=True).encode() + b"\n")


def assemble_mrpc(train: Path, test: Path, folder: Path) -> None:
    """Writes GLUE's train.tsv, dev.tsv and test.tsv from Microsoft's two files, byte for byte."""
    dev_ids = set((models.FOLDER / "mrpc_dev_ids.txt").read_text().splitlines())
    header, *rows = train.read_bytes().splitlines(keepends=True)
    parts: dict[str, list[bytes]] = {"train.tsv": [header], "dev.tsv": [header]}
    for number, row in enumerate(rows, 2):
        parts["dev.tsv" if _pair(train, number, row) in dev_ids else "train.tsv"].append(row)
    # GLUE's test file has the row's number where labels stand, and no byte-order mark.
    header, *rows = test.read_bytes().splitlines(keepends=True)
    parts["test.tsv"] = [b"index\t" + header.partition(b"\t")[2]]
    for number, row in enumerate(rows, 2):
        _pair(test, number, row)
        parts["test.tsv"].append(b"%d\t" % (number - 2) + row.partition(b"\t")[2])
    for name, lines in parts.items():
        files.write_whole(folder / name, b"".join(lines))


def _pair(path: Path, number: int, row: bytes) -> str:
    """The two ids of a row of Microsoft's files, as the list of development ids has them."""
    columns = row.split(b"\t")
    if len(columns) != 5 or not all(column.isdigit() for column in columns[1:3]):
        raise DataError(f"{path}:{number}: not label, two ids and two sentences: fetch it again")
    return b"\t".join(columns[1:3]).decode()


def unpack(archives: list[Path], wanted: tuple[str, ...], folder: Path) -> None:
    """Unpacks the wanted files from below each archive's top folder, under names that we choose, not the zip.

    Raises DownloadError where an archive is damaged, a file is missing or unpacks to more than a gibibyte.
    """
    missing = set(wanted)
    for path in archives:
        try:
            with open(path, "rb") as file, zips.opened(file) as archive:
                for member in archive.infolist():
                    name = member.filename.partition("/")[2]
                    if name in missing:
                        with archive.open(member) as source:
                            files.write_whole(folder / name, _bounded(source, f"{path}: {member.filename}"))
                        missing.remove(name)
        # OSError: a place in the file that does not exist (what cannot be written is a MinibertError already).
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            ValueError,
            OSError,
        ) as reason:
            raise DownloadError(f"{path}: a damaged zip ({reason}): fetch it again") from None
    if missing:
        raise DownloadError(f"{archives[0]}: holds no {', '.join(sorted(missing))}: fetch it again")


def _bounded(source: IO[bytes], where: str) -> Callable[[BinaryIO], None]:
    """A writer that copies `source` in pieces and stops at the limit, whatever size the zip announces."""

    def write(target: BinaryIO) -> None:
        done = 0
        while block := source.read(files.CHUNK):
            done += len(block)
            if done > _LIMIT:
                raise DownloadError(f"{where}: unpacks to more than {_LIMIT} bytes: not used")
            target.write(block)

    return write
