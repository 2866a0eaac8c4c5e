"""arXiv identifiers: what people paste becomes one canonical id, and what is no id is refused with a reason.

Two grammars, both text (a number would lose its zeros):

* old, until 2007-03: ``archive/YYMMNNN``, sometimes with a subject class that belongs to no id (``math.CA/0611800``);
* new, from 2007-04: ``YYMM.NNNN`` until 2014-12, ``YYMM.NNNNN`` from 2015-01.

A version ``vN`` may follow either. The months 9901 and 2099-01 would look alike, so new ids end with 2090.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import unquote

_ARCHIVE = (
    "acc-phys|adap-org|alg-geom|ao-sci|astro-ph|atom-ph|bayes-an|chao-dyn|chem-ph|cmp-lg|comp-gas|cond-mat|cs|dg-ga|"
    "funct-an|gr-qc|hep-ex|hep-lat|hep-ph|hep-th|math-ph|math|mtrl-th|nlin|nucl-ex|nucl-th|patt-sol|physics|plasm-ph|"
    "q-alg|q-bio|quant-ph|solv-int|supr-con"
)
_LONGEST_INPUT = 400  # characters; a URL with a query string fits, a page of text does not

_SUBJECT_CLASS = r"(?:\.[a-z]+(?:-[a-z]+)?)?"
_OLD = rf"(?P<archive>{_ARCHIVE}){_SUBJECT_CLASS}/(?P<old>[0-9]{{7}})"
_NEW = r"(?P<month>[0-9]{4})\.(?P<number>[0-9]{4,5})"
_VERSION = r"(?:v(?P<version>[0-9]+))?"
_ID = re.compile(rf"(?:{_OLD}|{_NEW}){_VERSION}", re.IGNORECASE)

_WEB = re.compile(r"(?:https?://)?(?:(?:www|export)\.)?arxiv\.org/(?:abs|pdf|html|src|ps|e-print)/", re.IGNORECASE)
_DOI = re.compile(r"(?:(?:https?://)?(?:dx\.)?doi\.org/|doi:\s*)?10\.48550/arxiv\.", re.IGNORECASE)
_SCHEME = re.compile(r"(?:oai:)?arxiv(?:\.org)?:\s*", re.IGNORECASE)
_STAMP = re.compile(r"\s*\[[A-Za-z.-]{2,20}\](?:\s+[0-9]{1,2} [A-Z][a-z]{2} [0-9]{4})?\Z")  # "[cs.CL]  2 Aug 2023"
_FILE_ENDING = re.compile(r"(?:\.pdf|\.ps\.gz|\.ps|\.tar\.gz|\.gz)\Z", re.IGNORECASE)
_DASHES = str.maketrans({"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-"})
_AROUND = " \t\r\n<>()[]{}\"'.,;\u200b\ufeff"
_IN_TEXT = re.compile(
    rf"(?<![0-9A-Za-z])(?:(?P<prefix>{_WEB.pattern}|{_DOI.pattern}|{_SCHEME.pattern})|(?<![.-]))"
    rf"(?P<id>{_ID.pattern})(?![0-9A-Za-z]|\.[0-9])",
    re.IGNORECASE,
)


class BadIdentifier(ValueError):
    """The text is no arXiv identifier; the message says what was wanted and what came."""


@dataclass(frozen=True, slots=True, order=True)
class ArxivId:
    """A canonical arXiv id, without and with its version.

    Attributes:
        id: ``"2303.06349"`` or ``"math/0611800"``.
        version: from 1, or None where none was named.
    """

    id: str
    version: int | None = None

    @property
    def key(self) -> str:
        """The key of the paper, whatever its version: ``"arxiv:2303.06349"``."""
        return f"arxiv:{self.id}"

    def __str__(self) -> str:
        return self.id if self.version is None else f"{self.id}v{self.version}"


def parse_arxiv_id(text: str) -> ArxivId:
    """The one arXiv id that ``text`` spells.

    Accepts the bare id, ``arXiv:`` in any case, addresses of arxiv.org (``/abs /pdf /html /src /ps``), the DOI
    ``10.48550/arXiv.…``, file endings and the stamp of a PDF's margin. Mends what is commonly broken: ``2401.6769`` to
    ``2401.06769``, ``1406.02661`` to ``1406.2661``, ``math.CA/0611800`` to ``math/0611800``.

    Args:
        text: one id in any of these forms, at most 400 characters.
    Returns the canonical id.
    Raises BadIdentifier (a ValueError): anything else, with the reason.
    Cost: O(len(text)).
    """
    if not isinstance(text, str):
        raise BadIdentifier(f"an arXiv id is text such as '2401.06769', not a {type(text).__name__}")
    if len(text) > _LONGEST_INPUT:
        raise BadIdentifier(f"an arXiv id is short; this text has {len(text)} characters")
    rest = _bare(text)
    match = _ID.fullmatch(rest)
    if match is None:
        forms = "'2401.06769', '2401.06769v2' or 'hep-th/9901001'"
        raise BadIdentifier(f"{text!r} is no arXiv id: wanted a form such as {forms}")
    return _canonical(match, text)


def find_arxiv_ids(text: str) -> list[ArxivId]:
    """Every arXiv id in running text, in order, each (id, version) once.

    A bare number is taken only if it needs no mending (``2401.6769`` alone may be a measurement); after ``arXiv:``,
    in an address or in a DOI it is mended as in :func:`parse_arxiv_id`.

    Cost: O(len(text)).
    """
    found: dict[ArxivId, None] = {}
    for match in _IN_TEXT.finditer(_plain_ascii(text)):
        try:
            identifier = _canonical(match, match["id"])
        except BadIdentifier:
            continue
        if match["prefix"] or match["archive"] or match["number"] == identifier.id.partition(".")[2]:
            found[identifier] = None
    return list(found)


def _bare(text: str) -> str:
    """``text`` without what may stand around an id."""
    rest = _STAMP.sub("", _plain_ascii(text).strip()).strip(_AROUND)
    address = _WEB.match(rest)
    if address:
        rest = unquote(re.split(r"[?#]", rest[address.end() :], maxsplit=1)[0]).rstrip("/")
    for prefix in (_DOI, _SCHEME):
        rest = prefix.sub("", rest, count=1) if prefix.match(rest) else rest
    return _FILE_ENDING.sub("", rest)


def _plain_ascii(text: str) -> str:
    """Full-width digits, colons and typographic hyphens as the ASCII that they stand for."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_DASHES)


def _canonical(match: re.Match[str], text: str) -> ArxivId:
    version = _version(match["version"], text)
    if match["archive"]:
        archive, number = match["archive"].lower(), match["old"]
        year, month = int(number[:2]), int(number[2:4])
        _check_month(month, text)
        if not ((year, month) >= (91, 7) or (year, month) <= (7, 3)):
            raise BadIdentifier(f"{text!r} is no arXiv id: ids with an archive run from 9107 to 0703, not {number[:4]}")
        if number[4:] == "000":
            raise BadIdentifier(f"{text!r} is no arXiv id: numbers start at 001")
        return ArxivId(f"{archive}/{number}", version)
    month_text, number = match["month"], match["number"]
    year, month = int(month_text[:2]), int(month_text[2:])
    _check_month(month, text)
    if not (7, 4) <= (year, month) <= (90, 12):
        raise BadIdentifier(f"{text!r} is no arXiv id: ids without an archive start with 0704, not {month_text}")
    wanted = 4 if year < 15 else 5
    if len(number) < wanted:
        number = "0" + number
    elif len(number) > wanted:
        if number[0] != "0":
            raise BadIdentifier(f"{text!r} is no arXiv id: until 1412 the number has four digits, not {number}")
        number = number[1:]
    if not number.strip("0"):
        raise BadIdentifier(f"{text!r} is no arXiv id: numbers start at 1")
    return ArxivId(f"{month_text}.{number}", version)


def _check_month(month: int, text: str) -> None:
    if not 1 <= month <= 12:
        raise BadIdentifier(f"{text!r} is no arXiv id: months run from 01 to 12, not {month:02d}")


def _version(digits: str | None, text: str) -> int | None:
    if digits is None:
        return None
    if digits[0] == "0" or len(digits) > 3:
        raise BadIdentifier(f"{text!r} is no arXiv id: versions run from v1 to v999, not v{digits[:20]}")
    return int(digits)
