"""BibTeX and BibLaTeX files: entries of arXiv join the papers of arXiv, others go by their DOI or citation key."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from bibtexparser.entrypoint import parse_string
from bibtexparser.middlewares.names import parse_single_name_into_parts, split_multiple_persons_names
from bibtexparser.model import DuplicateBlockKeyBlock, DuplicateFieldKeyBlock, Entry, ParsingFailedBlock

from carrel.papers.categories import canonical
from carrel.papers.fold import Record
from carrel.papers.identifiers import ArxivId, BadIdentifier, find_arxiv_ids, parse_arxiv_id
from carrel.papers.model import Paper
from carrel.papers.tex import segments
from carrel.papers.text import clean

from .report import Rejected, Remark
from .streams import Line, UnreadableFile

SOURCE = "bibtex"
_LARGEST = 64 << 20  # bytes; the parser holds a file whole
_LONGEST_KEY = 150
_ENTRY = re.compile(rb"^\s*@\s*[A-Za-z]+\s*[{(]", re.MULTILINE)
_GROUP = re.compile(r"(\\[A-Za-z]+\*?\s*)?\{([^{}]*)\}")
_ESCAPED = re.compile(r"\\([&%_#$])")
_DOI = re.compile(r"(?:https?://)?(?:dx\.)?doi\.org/|doi:\s*", re.IGNORECASE)
_PREPRINT = re.compile(r"arxiv|\bcorr\b", re.IGNORECASE)

# The parser reports every broken entry to its log; here they go to the rejects file.
logging.getLogger("bibtexparser").addHandler(logging.NullHandler())


def matches(head: bytes) -> bool:
    """Whether a file that begins so is BibTeX."""
    return _ENTRY.search(head) is not None


def read(lines: Iterable[Line]) -> Iterator[Record | Remark]:
    """A record or a rejection for each entry, and remarks, by the line at which the entry begins.

    Raises UnreadableFile: more than 64 MB.
    """
    library = parse_string(_text(lines))
    for block in library.blocks:
        if not isinstance(block, Entry | ParsingFailedBlock):
            continue
        line = (block.start_line or 0) + 1
        raw = block.raw or ""
        entry = block if isinstance(block, Entry) else block.ignore_error_block
        if not isinstance(entry, Entry):
            yield Remark(line, f"not valid BibTeX: {_reason(block)}", raw)
            continue
        try:
            paper = _paper(entry)
            if isinstance(block, DuplicateBlockKeyBlock) and paper.key == f"bibtex:{entry.key}":
                raise Rejected(f"an entry before it has the citation key {entry.key!r} too")
        except Rejected as error:
            yield Remark(line, str(error), raw)
            continue
        if isinstance(block, DuplicateFieldKeyBlock):
            yield Remark(line, "it has a field twice; the last one was taken", raw, kept=True)
        yield Record.of(paper)


def _text(lines: Iterable[Line]) -> str:
    parts: list[bytes] = []
    size = 0
    for line in lines:
        parts.append(line.text)
        size += len(line.text) + 1
        if size > _LARGEST:
            raise UnreadableFile(f"a BibTeX file may have {_LARGEST >> 20} MB; split this one")
    whole = b"\n".join(parts)
    try:
        return whole.decode("utf-8")
    except UnicodeDecodeError:
        return whole.decode("latin-1")  # what BibTeX files were before


def _reason(block: Any) -> str:
    return str(block.error).strip().rstrip(".") or "the entry does not end"


def _paper(entry: Entry) -> Paper:
    fields = {name.lower(): _bare(str(field.value)) for name, field in entry.fields_dict.items()}
    title = _prose(fields.get("title", ""))
    if not title:
        raise Rejected("it has no title")
    identifier = _arxiv_id(fields)
    doi = _DOI.sub("", fields.get("doi", "").strip()).lower() or None
    if identifier is not None:
        key = identifier.key
    elif doi:
        key = f"doi:{doi}"
    elif entry.key.strip():
        key = f"bibtex:{entry.key.strip()}"
    else:
        raise Rejected("it has neither an arXiv id, nor a DOI, nor a citation key")
    if len(key) > _LONGEST_KEY:
        raise Rejected(f"its key has {len(key)} characters; {_LONGEST_KEY} are allowed")
    journal = _prose(fields.get("journal", "") or fields.get("journaltitle", ""))
    venue = _prose(fields.get("booktitle", "")) or (journal if not _PREPRINT.search(journal) else "")
    primary = fields.get("primaryclass") or fields.get("eprintclass")
    return Paper(
        key=key,
        source=SOURCE,
        as_of=_as_of(fields),
        title=title,
        abstract=_prose(fields.get("abstract", ""), one_line=False),
        authors=_names(fields.get("author", "") or fields.get("editor", "")),
        categories=(canonical(primary.strip()),) if identifier and primary else (),
        version=identifier.version if identifier else None,
        year=_year(fields),
        venue=venue or None,
        comment=_prose(fields.get("note", "")) or None,
        doi=doi,
    )


def _bare(value: str) -> str:
    """A value without the signs around it, where the parser left them."""
    value = value.strip()
    if len(value) > 1 and (value[0] + value[-1]) in ("{}", '""') and isinstance(value, str):
        inner = value[1:-1]
        if value[0] == '"' or _balanced(inner):
            return inner.strip()
    return value


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _prose(value: str, *, one_line: bool = True) -> str:
    """A text without BibTeX's braces and escapes; math stays as it is."""
    cleaned = clean(value, one_line=one_line)
    return "".join(piece if math else _unbraced(piece) for piece, math in segments(cleaned)).strip()


def _unbraced(text: str) -> str:
    while True:  # innermost first; the braces of a command are set aside
        shorter = _GROUP.sub(lambda m: f"{m[1]}\0{m[2]}\1" if m[1] else m[2], text)
        if shorter == text:
            break
        text = shorter
    text = text.replace("\0", "{").replace("\1", "}").replace("~", " ")
    text = text.replace("---", "—").replace("--", "–")
    return _ESCAPED.sub(r"\1", text)


def _names(value: str) -> tuple[str, ...]:
    names = []
    for person in split_multiple_persons_names(" ".join(value.split())):
        if person.lower() == "others":
            continue
        if person.startswith("{") and person.endswith("}") and _balanced(person[1:-1]):
            names.append(_prose(person))  # a group, not a person
            continue
        try:
            parts = parse_single_name_into_parts(person, strict=False)
            spelled = " ".join([*parts.first, *parts.von, *parts.last, *parts.jr])
        except ValueError:
            spelled = person
        names.append(_prose(spelled))
    return tuple(filter(None, names))


def _arxiv_id(fields: Mapping[str, str]) -> ArxivId | None:
    archive = (fields.get("archiveprefix") or fields.get("eprinttype") or "arxiv").lower()
    eprint = fields.get("eprint", "")
    if archive == "arxiv" and eprint:
        try:
            return parse_arxiv_id(eprint)
        except BadIdentifier:
            pass
    preprint = f"{fields.get('journal', '')} {fields.get('volume', '')}"
    where = f"{fields.get('doi', '')} {fields.get('url', '')} {preprint if _PREPRINT.search(preprint) else ''}"
    found = find_arxiv_ids(where) if _PREPRINT.search(where) else []
    return found[0] if found else None


def _year(fields: Mapping[str, str]) -> int | None:
    match = re.match(r"\s*([12][0-9]{3})", fields.get("year") or fields.get("date") or "")
    return int(match[1]) if match else None


def _as_of(fields: Mapping[str, str]) -> str:
    """When the entry was last changed, if its manager says so."""
    for name in ("date-modified", "timestamp", "date-added"):
        try:
            return date.fromisoformat(fields.get(name, "").strip()[:10].replace(".", "-")).isoformat()
        except ValueError:
            continue
    return ""
