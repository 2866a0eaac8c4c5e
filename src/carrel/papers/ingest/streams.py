"""Files as lines, whatever they are packed with: read in small pieces, up to the last whole line before any damage."""

from __future__ import annotations

import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

_CHUNK = 1 << 16  # bytes read at once
_PIECE = 1 << 18  # bytes unpacked at once, whatever a small file claims to hold
LONGEST_LINE = 16 << 20  # bytes
_MEMORY = 512 << 20  # bytes an xz or zstd file may ask for to be unpacked
_DAMAGE = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError)


class UnreadableFile(ValueError):
    """The file cannot be imported; the message says why and what could be."""


class _CutOff(Exception):
    """The packed data ends before its end."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; ``text`` is its beginning where it was ``too_long``."""

    number: int
    text: bytes
    too_long: bool = False


class _Unpacker(Protocol):
    eof: bool
    rest: bytes  # what follows the end of the stream

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.eof, self.rest = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            yield (piece := self._inner.decompress(data, _PIECE))
            data = self._inner.unconsumed_tail
            if self._inner.eof or (not data and len(piece) < _PIECE):
                break
        self.eof, self.rest = self._inner.eof, self._inner.unused_data


class _Xz:
    def __init__(self) -> None:
        self._inner = lzma.LZMADecompressor(memlimit=_MEMORY)
        self.eof, self.rest = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            yield self._inner.decompress(data, _PIECE)
            data = b""
            if self._inner.eof or self._inner.needs_input:
                break
        self.eof, self.rest = self._inner.eof, self._inner.unused_data


class _Zstd:
    _STEP = 1024  # zstd cannot limit its output; a kilobyte unpacks to 32 MB at the very most

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_MEMORY >> 1).decompressobj()
        self.eof, self.rest = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self._STEP):
            yield self._inner.decompress(data[start : start + self._STEP])
            if self._inner.eof:
                self.eof, self.rest = True, self._inner.unused_data + data[start + self._STEP :]
                return


_PACKINGS: dict[bytes, tuple[str, Callable[[], _Unpacker]]] = {
    b"\x1f\x8b": ("gzip", _Gzip),
    b"\xfd7zXZ\x00": ("xz", _Xz),
    b"\x28\xb5\x2f\xfd": ("zstd", _Zstd),
}


class Lines:
    """The lines of a file, unpacked if it is gzip, xz or zstd by its first bytes.

    Iterate once. ``consumed`` says how many of its ``size`` bytes were read, ``unpacked`` how many the lines given so
    far hold; ``damage`` is one sentence if the packed
    data was cut off or wrong, in which case every whole line before that point was still given.

    Raises UnreadableFile: the file cannot be opened.
    Cost: memory for one line (16 MB at most; a longer one comes as its beginning) and one piece.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.consumed = self.unpacked = 0
        self.damage: str | None = None
        self._broke: str | None = None
        try:
            status = path.stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # we read it more than once
                raise UnreadableFile(f"{path} is no file but a pipe or a device; save it as a file first")
            self.size = status.st_size
            with path.open("rb") as file:
                head = file.read(8)
        except OSError as error:
            raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from error
        self.packing = ""
        self._unpacker: Callable[[], _Unpacker] | None = None
        for magic, (name, unpacker) in _PACKINGS.items():
            if head.startswith(magic):
                self.packing, self._unpacker = name, unpacker

    def __iter__(self) -> Iterator[Line]:
        number = 0
        rest = b""
        overlong = False
        for piece in self._pieces():
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            for text in lines:
                number += 1
                self.unpacked += len(text)
                yield _line(number, text, overlong)
                overlong = False
            if len(rest) > LONGEST_LINE:
                rest, overlong = rest[:1000], True
        if self._broke is not None:
            self.damage = (
                f"{self.path.name}: its {self.packing} data {self._broke} at byte {self.consumed:,} of {self.size:,}, "
                f"in line {number + 1:,}; every whole line before that was read"
                + (", of which the last may be garbled" if self._broke == "is damaged" else "")
            )
        elif rest:
            yield _line(number + 1, rest, overlong)

    def _pieces(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            if self._unpacker is None:
                while piece := file.read(_PIECE):
                    self.consumed += len(piece)
                    yield piece
                return
            given = 0
            try:
                for piece in self._unpacked(file, self._unpacker, careful_from=None):
                    given += len(piece)
                    yield piece
                return
            except _CutOff:
                self._broke = "breaks off"
                return
            except _DAMAGE:
                careful_from = max(0, self.consumed - _CHUNK)
            # What the damaged chunk held before the damage was lost with it: unpack again, that chunk byte by byte.
            file.seek(0)
            self._broke = "is damaged"
            try:
                for piece in self._unpacked(file, self._unpacker, careful_from=careful_from):
                    skipped = min(given, len(piece))
                    given -= skipped
                    yield piece[skipped:]
            except (_CutOff, *_DAMAGE):
                return

    def _unpacked(
        self, file: BinaryIO, unpacker: Callable[[], _Unpacker], *, careful_from: int | None
    ) -> Iterator[bytes]:
        self.consumed = 0
        stream: _Unpacker | None = unpacker()
        while data := file.read(1 if careful_from is not None and self.consumed >= careful_from else _CHUNK):
            self.consumed += len(data)
            while data:
                if stream is None:  # several streams may follow each other, with zeros between
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    stream = unpacker()
                yield from stream.feed(data)
                data = stream.rest if stream.eof else b""
                stream = None if stream.eof else stream
        if stream is not None:
            raise _CutOff


def _line(number: int, text: bytes, overlong: bool) -> Line:
    if number == 1:
        text = text.removeprefix(b"\xef\xbb\xbf")
    if overlong or len(text) > LONGEST_LINE:
        return Line(number, text[:1000], too_long=True)
    return Line(number, text.removesuffix(b"\r"))
