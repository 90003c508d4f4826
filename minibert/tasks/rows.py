"""Rows of text files, strictly: UTF-8 with or without a byte-order mark, LF or CRLF; errors name the line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from minibert import files
from minibert.errors import DataError

Row = tuple[int, dict[str, str | None]]  # the line's number from 1, and its cells by column name

LARGEST = 3.4028234663852886e38  # of the float32 that labels are trained in
DELIMITED = {".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}


def format_of(path: Path) -> str:
    """csv, tsv or jsonl, by the file's ending."""
    try:
        return DELIMITED[path.suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: unknown kind of file; name it .csv, .tsv or .jsonl by what it holds") from None


def read_text(path: Path, advice: str) -> str:
    """The file's text without a byte-order mark; `advice` says what to do where it is missing or damaged."""
    check_file(path, advice)
    with files.one_line(path, "read", DataError):
        raw = path.read_bytes()
    text = decode(raw, str(path)).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: empty; {advice}")
    return text


def check_file(path: Path, advice: str) -> None:
    """DataError where there is no such file; `advice` says what to do then."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file")
    if not path.exists():
        raise DataError(f"{path}: no such file; {advice}")


def decode(raw: bytes, where: str, line: int = 1) -> str:
    """UTF-8 bytes that begin on `line` as text; NUL bytes are refused, and UTF-16, which has them."""
    if line == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{where}: line 1: UTF-16, by its first bytes; save it as UTF-8 (in Excel: CSV UTF-8)")
    if b"\0" in raw:
        line += raw.count(b"\n", 0, raw.index(b"\0"))
        raise DataError(f"{where}: line {line}: a NUL byte; fetch the file again, or save it as UTF-8 text")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(f"{where}: line {line}: not UTF-8; fetch the file again, or save it as UTF-8") from None


def split_lines(text: str) -> list[str]:
    """The lines without their ends. Only LF and CRLF end one: U+2028 and its kin stand inside sentences."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_rows(
    path: Path, advice: str, wanted: Mapping[str, str] | None = None, known: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of a csv, tsv or jsonl file with named columns; every row must have what the header names.

    csv has quotes as in RFC 4180, and may have semicolons in the place of commas; tsv has none, as in GLUE; jsonl
    holds one object of strings and numbers a line. `wanted`: columns that the header must name, and what to do about
    each that it does not; of these and of those in `known` the case does not count.
    """
    kind, text = format_of(path), read_text(path, advice)
    if kind == "jsonl":
        for number, line in enumerate(split_lines(text), 1):
            if line.strip():
                yield number, json_cells(line, str(path), number, [*(wanted or {})], known)
    else:
        lines = io.StringIO(text, newline="")
        cells = csv_cells(lines, str(path)) if kind == "csv" else tsv_cells(split_lines(text))
        yield from named(cells, str(path), wanted, known)


def tsv_cells(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells; a quotation mark is a character like any other."""
    return ((number, line.split("\t")) for number, line in enumerate(lines, 1))


csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # characters of a cell; the module's own limit is 131,072


def csv_header(line: str) -> list[str]:
    """The cells of a line of csv that stands alone; none of one that is no csv, as with a carriage return within."""
    try:
        return next(csv.reader([line], delimiter=_delimiter(line)))
    except csv.Error:
        return []


def _delimiter(header: str) -> str:
    """A comma, or where commas are decimal points, as in much of Europe, what Excel puts in its place."""
    return ";" if ";" in header and "," not in header else ","


def csv_cells(lines: Iterable[str], where: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of lines with their ends; a line is asked for when the row before it has been used."""
    numbered = enumerate(lines, 1)
    first, header = next(((number, line) for number, line in numbered if line.strip()), (1, ""))
    rest = (line for _, line in numbered)
    reader = csv.reader(chain([header], rest), delimiter=_delimiter(header), strict=True)
    line = first
    try:
        for cells in reader:
            yield line, cells
            line = first + reader.line_num
    except csv.Error as error:
        raise DataError(f"{where}: line {line}: {error}; check the quotes of the row that starts there") from None


def spelled(header: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of columns, each as `known` has it where only case differs and no other column is called so."""
    names = [name.strip() for name in header]
    knowns = {name.lower(): name for name in reversed(known)}
    found = [knowns.get(name.lower(), name) for name in names]
    return [name if new in names else new for name, new in zip(names, found, strict=True)]


def named(
    rows: Iterator[tuple[int, list[str]]],
    where: str,
    wanted: Mapping[str, str] | None = None,
    known: Sequence[str] = (),
) -> Iterator[Row]:
    """The rows below a header, which is the first of them; each must have what the header names.

    `wanted` and `known` as in read_rows.
    """
    first, header = next(rows, (1, []))
    header = spelled(header, (*(wanted or {}), *known))
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{where}: line {first}: column {twice[0]!r} stands twice; give each column its own name")
    for column, advice in (wanted or {}).items():
        if column not in header:
            raise DataError(f"{where}: line {first}: no column {column!r}{there_are(header, advice)}")
    for number, cells in rows:
        if not cells or (not any(cells) and len(header) > 1):
            continue  # an empty line, or one of delimiters alone, as Excel leaves them
        if len(cells) != len(header):
            raise DataError(
                f"{where}: line {number}: {len(cells)} columns where the header has {len(header)}; "
                "look for a stray or missing delimiter, or a file cut off"
            )
        yield number, dict(zip(header, cells, strict=True))


def as_number(text: str) -> float:
    """The number that a text is in decimal digits; NaN of any other, also of what only Python takes for one: 3_5."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def score(text: str, where: str) -> float:
    """A finite score; DataError otherwise."""
    value = as_number(text)
    if not abs(value) <= LARGEST:  # nor is NaN
        raise DataError(f"{where}: the label {text!r} is no number, or a too large one; correct the row or remove it")
    return value


def there_are(header: Sequence[str], advice: str) -> str:
    """What columns there are where one is missing, and `advice`; or that they stand between other delimiters."""
    if len(header) == 1 and re.search(r"[;,\t]", header[0]):
        needed = "a .csv needs commas or semicolons between columns, a .tsv tabs"
        return f": the header is one column, {header[0]!r:.60}; {needed}"
    return f" (there are: {', '.join(header)}); {advice}"


def json_cells(
    line: str, where: str, number: int, wanted: Sequence[str], known: Sequence[str]
) -> dict[str, str | None]:
    """The cells of one line of jsonl: strings as they stand, numbers, true and false as JSON writes them.

    `wanted`: the columns, where they are known; `known` as in read_rows.
    """
    cells = ", ".join(f"{json.dumps(name)}: ..." for name in wanted or ("sentence1", "sentence2"))
    advice = f"each line needs one object, {{{cells}}}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: line {number}: not JSON ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: line {number}: not an object; {advice}")
    found: dict[str, str | None] = {}
    for name, cell in zip(spelled([*value], [*wanted, *known]), value.values(), strict=True):
        if isinstance(cell, str):
            # JSON can spell half of a UTF-16 pair, which is no text.
            if any("\ud800" <= letter <= "\udfff" for letter in cell):
                raise DataError(f"{where}: line {number}: {name!r} holds a lone surrogate; remove it")
            found[name] = cell
        elif cell is None or isinstance(cell, (bool, int, float)):
            found[name] = None if cell is None else json.dumps(cell)
    return found
