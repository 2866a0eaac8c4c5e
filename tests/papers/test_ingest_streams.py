"""Lines come out whole, whatever they are packed with and wherever the packing is damaged."""

from __future__ import annotations

import gzip
import lzma
import random
import re
from pathlib import Path

import pytest
import zstandard

from carrel.papers.ingest import streams
from carrel.papers.ingest.streams import Lines, UnreadableFile

TEXT = "\n".join(f"line {n} {random.Random(n).getrandbits(64)}" for n in range(20_000)).encode() + b"\n"
PACK = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}
PACKED = {name: pack(TEXT) for name, pack in PACK.items()}
packings = pytest.mark.parametrize("packing", ["gzip", "xz", "zstd"])


def read(path: Path, data: bytes) -> tuple[list[bytes], Lines]:
    path.write_bytes(data)
    lines = Lines(path)
    return [line.text for line in lines], lines


@pytest.mark.parametrize("packing", list(PACK))
def test_every_line_comes_out(tmp_path: Path, packing: str) -> None:
    texts, lines = read(tmp_path / "misleading.bz2", PACKED[packing])
    assert texts == TEXT.splitlines()
    assert lines.damage is None
    assert lines.consumed == lines.size == len(PACKED[packing])


@packings
def test_streams_after_each_other_are_one(tmp_path: Path, packing: str) -> None:
    pack = PACK[packing]
    texts, lines = read(tmp_path / "f", pack(b"one\ntw") + pack(b"o\n") + pack(b"") + pack(b"three"))
    assert texts == [b"one", b"two", b"three"]
    assert lines.damage is None


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\ntwo"])
def test_marks_of_other_systems_are_no_text(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "f", data)[0] == [b"one", b"two"]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "f", b"")[0] == []


@packings
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_file_that_was_cut_off_gives_its_whole_lines_and_one_sentence(
    tmp_path: Path, packing: str, share: float
) -> None:
    data = PACKED[packing]
    texts, lines = read(tmp_path / "cut", data[: int(share * len(data))])
    whole = TEXT.splitlines()
    assert texts == whole[: len(texts)]
    assert len(texts) < len(whole)
    if packing == "gzip":  # the others pack in blocks of a hundred kilobytes and more
        assert len(texts) > (share - 0.2) * len(whole)
    assert lines.damage == (
        f"cut: its {packing} data breaks off at byte {lines.size:,} of {lines.size:,}, in line {len(texts) + 1:,}; "
        "every whole line before that was read"
    )


@packings
def test_a_damaged_file_gives_its_whole_lines_and_one_sentence(tmp_path: Path, packing: str) -> None:
    data = bytearray(PACKED[packing])
    middle = len(data) * 3 // 4
    data[middle : middle + 64] = bytes(64)
    texts, lines = read(tmp_path / "damaged", bytes(data))
    whole = TEXT.splitlines()
    right = next((n for n, (a, b) in enumerate(zip(texts, whole, strict=False)) if a != b), len(texts))
    assert right > 0.6 * len(whole)  # no packing can tell at once that text is wrong, but none may lose what was right
    assert lines.damage is not None
    assert re.fullmatch(
        rf"damaged: its {packing} data (is damaged|breaks off) at byte [\d,]+ of {lines.size:,}, "
        rf"in line {len(texts) + 1:,}; every whole line before that was read(, of which the last may be garbled)?",
        lines.damage,
    )


def test_what_the_damaged_chunk_held_before_the_damage_is_kept(tmp_path: Path) -> None:
    small = gzip.compress(TEXT[:50_000])
    assert len(small) < 1 << 16  # one chunk
    texts, lines = read(tmp_path / "f", small[:-8] + bytes(8))  # a wrong checksum at the very end
    assert texts == TEXT[:50_000].splitlines()[: len(texts)]
    assert len(texts) >= len(TEXT[:50_000].splitlines()) - 1
    assert "is damaged" in str(lines.damage)


def test_text_after_the_end_of_a_stream_is_damage(tmp_path: Path) -> None:
    texts, lines = read(tmp_path / "f", gzip.compress(b"one\ntwo\n") + b"rubbish")
    assert texts == [b"one", b"two"]
    assert "is damaged" in str(lines.damage)


@packings
def test_an_enormous_line_costs_no_enormous_memory(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 1 << 20)
    data = PACK[packing](b"one\n" + b"x" * (40 << 20) + b"\ntwo\n" + b"y" * (2 << 20))
    (tmp_path / "f").write_bytes(data)
    found = list(Lines(tmp_path / "f"))
    assert [(line.number, line.too_long) for line in found] == [(1, False), (2, True), (3, False), (4, True)]
    assert max(len(line.text) for line in found) <= 1000


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="nothing cannot be read: No such file"):
        Lines(tmp_path / "nothing")
    with pytest.raises(UnreadableFile, match="cannot be read: Is a directory"):
        Lines(tmp_path)
