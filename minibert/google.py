"""Google's own BERT checkpoints, `google:NAME`: its zips from their public addresses, unpacked into the user's cache.

MINIBERT_GOOGLE_URL replaces the root of the addresses, for a mirror. They are listed in the readme of
github.com/google-research/bert; the SHA-256 are of the files inside, not of the zips.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from minibert import files
from minibert.checkpoint import archive
from minibert.errors import CheckpointError, DownloadError

PREFIX = "google:"
ROOT = "https://storage.googleapis.com/bert_models/"


class Zip(NamedTuple):
    url: str  # below ROOT
    checksums: dict[str, str]  # file name: SHA-256, where it is known


_INDEX = "bert_model.ckpt.index"
_DATA = "bert_model.ckpt.data-00000-of-00001"
_FILES = ("bert_config.json", "vocab.txt", _INDEX, _DATA)

UNCASED = {"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"}
CASED = {"vocab.txt": "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"}
MULTILINGUAL = {"vocab.txt": "fe0fda7c425b48c516fc8f160d594c8022a0808447475c1a7c6d6479763f310c"}
CHINESE = {"vocab.txt": "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"}

# The 24 miniatures of 2020 by L layers and hidden size H; heads of 64 each.
MINIATURES = {
    f"L-{layers}_H-{hidden}": f"uncased_L-{layers}_H-{hidden}_A-{hidden // 64}"
    for layers in (2, 4, 6, 8, 10, 12)
    for hidden in (128, 256, 512, 768)
}
NICKNAMES = {"tiny": "L-2_H-128", "mini": "L-4_H-256", "small": "L-4_H-512", "medium": "L-8_H-512"}

# L-12_H-768 and base have zips of the same name, in different folders, and are different models.
ZIPS = {
    "base": Zip("2018_10_18/uncased_L-12_H-768_A-12.zip", UNCASED | {
        _INDEX: "04c1323086e2f1c5b7c0759d8d3e484afbb0ab45f51793daab9f647113a0117b",
        _DATA: "58580dc5e0bf0ae0d2efd51d0e8272b2f808857f0a43a88aaf7549da6d7a8a84",
    }),
    "large": Zip("2018_10_18/uncased_L-24_H-1024_A-16.zip", UNCASED | {
        _INDEX: "68b52f2205ffc64dc627d1120cf399c1ef1cbc35ea5021d1afc889ffe2ce2093",
        _DATA: "bc6b3363e3be458c99ecf64b7f472d2b7c67534fd8f564c0556a678f90f4eea1",
    }),
    "base-cased": Zip("2018_10_18/cased_L-12_H-768_A-12.zip", CASED | {
        _INDEX: "517d6ef5c41fc2ca1f595276d6fccf5521810d57f5a74e32616151557790f7b1",
        _DATA: "734d5a1b68bf98d4e9cb6b6692725d00842a1937af73902e51776905d8f760ea",
    }),
    "large-cased": Zip("2018_10_18/cased_L-24_H-1024_A-16.zip", CASED | {
        _INDEX: "ef42a53f577fbe07381f4161b13c7cab4f4fc3b167cec6a9ae382c53d18049cf",
        _DATA: "6ff33640f40d472f7a16af0c17b1179ca9dcc0373155fb05335b6a4dd1657ef0",
    }),
    "large-wwm": Zip("2019_05_30/wwm_uncased_L-24_H-1024_A-16.zip", {}),
    "large-cased-wwm": Zip("2019_05_30/wwm_cased_L-24_H-1024_A-16.zip", {}),
    "multilingual": Zip("2018_11_23/multi_cased_L-12_H-768_A-12.zip", MULTILINGUAL | {
        _INDEX: "7d8509c2a62b4e300feb55f8e5f1eef41638f4998dd4d887736f42d4f6a34b37",
        _DATA: "55b8a2df41f69c60c5180e50a7c31b7cdf6238909390c4ddf05fbc0d37aa1ac5",
    }),
    "chinese": Zip("2018_11_03/chinese_L-12_H-768_A-12.zip", CHINESE | {
        _INDEX: "46315546e05ce62327b3e2cd1bed22836adcb2ff29735ec87721396edb21b82e",
        _DATA: "756699356b78ad0ef1ca9ba6528297bcb3dd1aef5feadd31f4775d7c7fc989ba",
    }),
    **{name: Zip(f"2020_02_20/{stem}.zip", {}) for name, stem in MINIATURES.items()},
}  # fmt: skip


def listed(names: list[str]) -> str:
    """Names for people: the 24 miniatures in one pattern."""
    shown = [name for name in names if name not in MINIATURES]
    return ", ".join([*shown, "L-{2,4,6,8,10,12}_H-{128,256,512,768}"])


def find(name: str) -> str | None:
    """The table's name for google:NAME, else None."""
    short = name.removeprefix(PREFIX)
    short = NICKNAMES.get(short, short)
    return short if name.startswith(PREFIX) and short in ZIPS else None


def known(name: str) -> str:
    """The table's name for google:NAME; CheckpointError where it has none."""
    found = find(name)
    if found is None:
        choice = listed([*ZIPS, *NICKNAMES])
        raise CheckpointError(f"{name[:200]}: Google has published no such checkpoint: after {PREFIX} give {choice}")
    return found


def fetch(name: str, progress: files.Progress | None = None) -> Path:
    """The folder of google:NAME, downloaded, checked and unpacked where it is not in the cache yet.

    `progress(file, bytes done, bytes in all or None)` is called as it goes. A checksum that is not published
    is recorded after the first good download, in checksums.json beside the folders; later ones must repeat it.
    Of several processes one downloads and the others wait for it. Raises CheckpointError for an unknown name or
    a damaged zip, DownloadError where the network or a checksum fails.
    """
    found = known(name)
    folder = files.user_cache() / "google" / found
    with files.one_line(folder.parent, "use", DownloadError):
        if not _complete(folder):
            with files.locked(folder.with_name(".lock")):
                if not _complete(folder):
                    _fetch(found, folder, progress)
    return folder


def _complete(folder: Path) -> bool:
    return all((folder / file).is_file() for file in _FILES)


def _fetch(name: str, folder: Path, progress: files.Progress | None) -> None:
    url = f"{(os.environ.get('MINIBERT_GOOGLE_URL') or ROOT).rstrip('/')}/{ZIPS[name].url}"
    packed, unpacked = folder.with_name(f"{name}.zip"), folder.with_name(f".{name}.tmp")
    ledger = folder.with_name("checksums.json")
    recorded = files.read_json(ledger, DownloadError) if ledger.exists() else {}
    if not packed.exists():  # it is left where unpacking was interrupted or the disk was full
        files.fetch(url, packed, progress=progress)
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        archive.unpack_to(packed, unpacked)
        _check(name, unpacked, url, recorded, ledger)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unpacked, folder)
    except (CheckpointError, DownloadError):
        packed.unlink()
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    packed.unlink()


def _check(name: str, folder: Path, url: str, recorded: dict[str, str], ledger: Path) -> None:
    """Holds the files to their checksums and records those that were not known."""
    for file in _FILES:
        if not (folder / file).is_file():
            raise DownloadError(f"{url}: holds no {file}: check the address")
        got = files.sha256(folder / file)
        published = ZIPS[name].checksums.get(file)
        known = published or recorded.setdefault(f"{name}/{file}", got)
        if got != known:
            wanted = "that is published: try again"
            if not published:
                wanted = f"of an earlier download: if it was meant to change, remove {ledger}"
            raise DownloadError(f"{url}: {file} has SHA-256 {got}, not the {known} {wanted}")
    files.write_whole(ledger, json.dumps(recorded, indent=2, sort_keys=True).encode() + b"\n")
