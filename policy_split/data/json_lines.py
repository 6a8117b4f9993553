"""JSON lines, or one JSON list, as Python rows that know their lines; a fault is told with its own line and column.

Strict JSON (RFC 8259) in UTF-8: a byte order mark and blank lines are skipped, only \\n and \\r\\n end a line, numbers
keep their kind and size. NaN and Infinity, numbers beyond float64, a key that stands twice in one object, and a row
that is no object are faults.
"""

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

GZIP, LFS_POINTER = b"\x1f\x8b", b"version https://git-lfs"
OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLANKS = re.compile(r"[ \t\r\n]*")
TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
SHAPE = "a file holds one JSON object per line, or one list of objects"


class Row(NamedTuple):
    line: int  # where it begins
    value: dict[str, Any]


class _RefusedError(ValueError):
    """Said by the decoder's hooks, which do not know where they are."""


def read_json_rows(path: Path) -> list[Row]:
    """The rows of a file, which may be packed by gzip; ValueError names file, line, column and fault."""
    text = _decoded(_unpacked(path), path)
    if text.startswith("[", _past_blanks(text, 0)):
        return list(_of_list(text, path))
    lines = enumerate(text.split("\n"), 1)
    return [Row(number, _object(_whole(line, number, path), number, path)) for number, line in lines if line.strip()]


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise ValueError(f"{path}: a pointer of Git LFS, not the file itself; fetch it by git lfs pull")
    try:
        return gzip.decompress(data) if data.startswith(GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: packed by gzip, and cannot be unpacked ({error})") from error


def _decoded(data: bytes, path: Path) -> str:
    if data.startswith(OTHER_UNICODE):
        raise ValueError(f"{path}: begins with the byte order mark of UTF-16 or UTF-32; save it as UTF-8")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[start : start + error.start]
        line_before = before[before.rfind(b"\n") + 1 :].decode("utf-8")
        fault = f"byte {start + error.start} of the file, 0x{data[start + error.start]:02x}, is not UTF-8"
        raise _fault(path, before.count(b"\n") + 1, len(line_before) + 1, fault) from None


def _whole(line: str, number: int, path: Path) -> Any:
    try:
        return DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        position, fault = _explained(error, line, 0)
        goes_on = line.strip() == "{"  # an object over several lines
        raise _fault(path, number, position + 1, f"{fault}; {SHAPE}" if goes_on else fault) from None


def _of_list(text: str, path: Path) -> Iterator[Row]:
    place, counted, line, first = text.index("[") + 1, 0, 1, True
    while True:
        place = _past_blanks(text, place)
        if text[place : place + 1] == "]" and first:
            break
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _fault_at(path, text, *_explained(error, text, place)) from None
        yield Row(line, _object(value, line, path))
        place, first = _past_blanks(text, end), False
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise _fault_at(path, text, place, "expected ',' or ']' behind an object of the list")
        place += 1
    end = _past_blanks(text, place + 1)
    if end < len(text):
        raise _fault_at(path, text, end, f"there is more behind the end of the list; {SHAPE}")


def _past_blanks(text: str, place: int) -> int:
    found = BLANKS.match(text, place)
    return place if found is None else found.end()


def _object(value: Any, line: int, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _fault(path, line, None, f"{type(value).__name__} {value!r:.60}, expected an object; {SHAPE}")
    return value


def _explained(error: Exception, text: str, start: int) -> tuple[int, str]:
    """(position in the text, fault in words)."""
    if isinstance(error, json.JSONDecodeError):
        return error.pos, f"{error.msg}; {SHAPE}" if error.msg == "Extra data" else error.msg
    if isinstance(error, _RefusedError):
        return next(_refused(text, start), (start, str(error)))
    return start, "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refused(text: str, start: int) -> Iterator[tuple[int, str]]:
    """What is well-formed and refused, with its position: the tokens are walked with the keys of all open objects."""
    open_keys: list[set[str] | None] = []
    before = ""
    for token in TOKENS.finditer(text, start):
        part = token.group()
        if part in "{[":
            open_keys.append(set() if part == "{" else None)
        elif part in "}]":
            open_keys.pop()
        elif part[0] == '"':
            keys = open_keys[-1] if open_keys else None
            if keys is not None and before in "{,":
                key = json.loads(part)
                if key in keys:
                    yield token.start(), f"the key {key!r} stands twice in one object"
                keys.add(key)
        elif part not in ":,":
            try:
                DECODER.decode(part)
            except _RefusedError as error:
                yield token.start(), str(error)
        before = part


def _fault_at(path: Path, text: str, position: int, fault: str) -> ValueError:
    return _fault(path, text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position), fault)


def _fault(path: Path, line: int, column: int | None, fault: str) -> ValueError:
    where = f"{path}, line {line}" if column is None else f"{path}, line {line}, column {column}"
    return ValueError(f"{where}: {fault}")


def _constant(name: str) -> float:
    raise _RefusedError(f"{name} is not JSON; write null, or a text")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _RefusedError(f"{digits:.40} is beyond what a float can hold; write it as a text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RefusedError("a key stands twice in one object")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_float)
