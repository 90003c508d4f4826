"""Opens zips that somebody else has made: zipfile takes a directory into memory whole, however long it says it is."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

LIMIT = 1 << 20  # bytes of a directory, and of what is read at once: that of BERT-Large's pytorch_model.bin has 30 kB


class _Pieces:
    """A file that is read in pieces."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, size: int = -1) -> bytes:
        if size > LIMIT:
            raise zipfile.BadZipFile(f"its directory says it has {size} bytes, not under {LIMIT}")
        return self._read(size)


def opened(file: BinaryIO) -> zipfile.ZipFile:
    """The archive in a file; zipfile.BadZipFile and what else zipfile raises for bytes that are none."""
    return zipfile.ZipFile(_Pieces(file))
