"""The entries of one list in a large JSON file, one after another, without the rest of the file in memory.

The file is an object with the list under one of its keys: {"Data": [...], "Version": 1.0} is TriviaQA's, SQuAD's has
its articles under "data". A byte-order mark may stand before it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minibert import files
from minibert.errors import DataError

LARGEST = 64 << 20  # characters of an entry, or of a value beside the list; web-train.json has entries of some 10,000
SPACE = re.compile(r"[ \t\n\r]*")
DELIMITERS = tuple(" \t\n\r:,]}")


def entries(path: Path, key: str, advice: str, largest: int | None = None) -> Iterator[Any]:
    """The entries of the list under `key`; DataError, at the latest at the end, for a file that is malformed.

    advice: what to do about JSON of another shape. largest: instead of LARGEST.
    """
    with files.open_read(path, DataError) as file:
        yield from _Scanner(file, path, advice, largest or LARGEST).entries(key)


class _Scanner:
    """Parses a file of JSON value by value; `text[place:]` is what was read and not yet parsed, after `passed` more."""

    def __init__(self, file: BinaryIO, path: Path, advice: str, largest: int) -> None:
        self.file, self.path, self.advice, self.largest = file, path, advice, largest
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = files.json_decoder().raw_decode
        self.text, self.place, self.passed, self.ended = "", 0, 0, False

    def entries(self, key: str) -> Iterator[Any]:
        if (found := self.next()) != "{":
            raise self.shape("is no JSON object" if found else "is empty")
        self.place += 1
        seen: set[str] = set()
        if self.next() == "}":
            raise self.shape(f'has no "{key}"')
        while True:
            name = self.value()
            if not isinstance(name, str) or name in seen:
                raise self.error(f"{name!r:.200} is no key, or stands twice")
            seen.add(name)
            self.expect(":", "':' after a key")
            if name == key and self.next() != "[":
                raise self.shape(f'"{key}" is no list')
            if name == key:
                yield from self.list()
            else:
                self.value()
            if self.take("},") == "}":
                break
        if self.next():
            raise self.error("more than one JSON value")
        if key not in seen:
            raise self.shape(f'has no "{key}"')

    def list(self) -> Iterator[Any]:
        self.expect("[", "a list")
        if self.next() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self.take("],") == "]":
                return

    def value(self) -> Any:
        """The next value, which is read until it is whole."""
        wanted = files.CHUNK
        while True:
            self.next()
            try:
                value, end = self.parse(self.text, self.place)
                if self.text[end : end + 1] in DELIMITERS or self.whole():  # else a number may go on
                    self.place = end
                    return value
            except (ValueError, RecursionError) as reason:
                if self.whole():
                    self.place = getattr(reason, "pos", self.place)
                    raise self.error(getattr(reason, "msg", str(reason))) from None
            self.read(wanted)
            wanted *= 2

    def whole(self) -> bool:
        """Whether reading on would not make sense of what cannot be parsed."""
        return self.ended or len(self.text) - self.place > self.largest

    def next(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while (match := SPACE.match(self.text, self.place)) and match.end() == len(self.text) and not self.ended:
            self.read(files.CHUNK)
        assert match
        self.place = match.end()
        return self.text[self.place : self.place + 1]

    def take(self, allowed: str) -> str:
        """One of the allowed characters."""
        found = self.next()
        if not found or found not in allowed:
            raise self.error(f"{found!r} instead of one of {allowed}")
        self.place += 1
        return found

    def expect(self, character: str, what: str) -> None:
        if self.next() != character:
            raise self.error(f"not {what}")
        self.place += 1

    def read(self, size: int) -> None:
        """Adds what comes next in the file, and lets go of what was parsed."""
        with files.one_line(self.path, "read", DataError):
            block = self.file.read(size)
        self.ended = not block
        try:
            self.text = self.text[self.place :] + self.decode(block, self.ended)
        except UnicodeDecodeError as reason:
            raise self.error(str(reason)) from None
        self.passed, self.place = self.passed + self.place, 0

    def shape(self, what: str) -> DataError:
        """For valid JSON that is something else."""
        return DataError(f"{self.path}: {what}; {self.advice}")

    def error(self, what: str) -> DataError:
        where = f"{self.path}: at character {self.passed + self.place}"
        return DataError(f"{where}: not valid JSON ({what}); get the file again")
