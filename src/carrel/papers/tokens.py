"""How text becomes search terms, the same for papers, queries and highlighting.

Words are runs of letters and digits in small letters, without accents, cut to their English stem; every Chinese
character is a term of its own, so that a run of them is found as a phrase. Names are not stemmed. What people write in
two ways is indexed in both: ``pre-training`` as ``pre``, ``training`` and ``pretraining``, ``β-VAE`` also as ``beta``
and ``betavae``, ``C++`` as ``cplusplus``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import tantivy

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HAN = re.compile(f"[{HAN}]")
_WORD = rf"[^\W_{HAN}]+"
_COMPOUND = re.compile(rf"{_WORD}(?:[-\u2010\u2011\u2013^_/'’]{_WORD})+")
_ASCII_COMPOUND = re.compile(r"[A-Za-z0-9]+(?:[-^_/'][A-Za-z0-9]+)+")  # the same, several times faster
_JOINT = re.compile(r"[-\u2010\u2011\u2013^_/'’]")
_INNER_JOINT = re.compile(rf"{_JOINT.pattern}(?<=\w.)(?=\w)")  # the sign first, so that it is sought and not tried
_MOST_PARTS = 4  # of a compound that is also indexed in one word; longer ones are paths and formulas
_NAMED = {"c++": "cplusplus", "c#": "csharp", "f#": "fsharp", ".net": "dotnet", "a*": "astar", "q&a": "qanda"}
_NAMED_IN_TEXT = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, _NAMED))})(?![\w+#*&])", re.IGNORECASE)
_GREEK_NAMES = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi
omega epsilon phi theta rho sigma Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega mu
"""
_GREEK = dict(zip("αβγδεζηθικλμνξοπρστυφχψωϵϕϑϱςΓΔΘΛΞΠΣΦΨΩµ", _GREEK_NAMES.split(), strict=True))
_GREEK_TABLE = str.maketrans(_GREEK)
_GREEK_LETTER = re.compile(f"[{''.join(_GREEK)}]")
_GREEK_WORD = re.compile(rf"[^\W_]*[{''.join(_GREEK)}][^\W_]*")


def _analyzer(*, stemmed: bool) -> tantivy.TextAnalyzer:
    # Splitting at what is no letter or digit is twice as fast as a regular expression that knows Chinese, so `spaced`
    # sets the Chinese characters apart before.
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(100))
    builder = builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.ascii_fold())
    return (builder.filter(tantivy.Filter.stemmer("english")) if stemmed else builder).build()


MIXED, NAME = "carrel_mixed", "carrel_name"
ANALYZERS = {MIXED: _analyzer(stemmed=True), NAME: _analyzer(stemmed=False)}


def spaced(text: str) -> str:
    """``text`` with blanks around each Chinese character; what is given to the analyzers must have passed here."""
    return text if text.isascii() else _HAN.sub(r" \g<0> ", text)


def stems(text: str) -> list[str]:
    """The terms of text, in order."""
    return ANALYZERS[MIXED].analyze(spaced(text))


def names(text: str) -> list[str]:
    """The terms of names, in order: not stemmed."""
    return ANALYZERS[NAME].analyze(spaced(text))


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """The term of one word, cached; empty if it has none."""
    terms = ANALYZERS[MIXED].analyze(word)
    return terms[0] if terms else ""


def variants(text: str) -> list[str]:
    """Other spellings of words in ``text``, to be indexed beside it: compounds in one word, Greek by name, C++."""
    found = dict.fromkeys(_joined(text))
    if not text.isascii() and _GREEK_LETTER.search(text):
        found |= dict.fromkeys(match[0].translate(_GREEK_TABLE) for match in _GREEK_WORD.finditer(text))
        found |= dict.fromkeys(_joined(text.translate(_GREEK_TABLE)))
    if "+" in text or "#" in text or "*" in text or "&" in text or ".net" in text.lower():
        found |= dict.fromkeys(_NAMED[match[0].lower()] for match in _NAMED_IN_TEXT.finditer(text))
    return list(found)


def _joined(text: str) -> Iterator[str]:
    done = 0
    for joint in _INNER_JOINT.finditer(text):  # few; matching compounds everywhere would take ten times as long
        if joint.start() < done:
            continue
        start = text.rfind(" ", done, joint.start()) + 1 or done
        done = text.find(" ", joint.start()) + 1 or len(text)
        word = text[start:done]
        for match in (_ASCII_COMPOUND if word.isascii() else _COMPOUND).finditer(word):
            parts = _JOINT.split(match[0])
            if len(parts) <= _MOST_PARTS:
                yield "".join(parts)
                if len(parts) > 2:
                    yield from (first + second for first, second in pairwise(parts))


def spellings(word: str) -> list[str]:
    """The ways in which a searched word may stand in a text, the word itself first.

    A compound is looked for as its parts in a row and as one word; Greek letters also by their names.
    """
    named = _NAMED.get(word.lower().rstrip(",;:!?"))
    if named:
        return [named]
    found = {word: None, word.translate(_GREEK_TABLE): None}
    for spelling in list(found):
        compound = _COMPOUND.fullmatch(spelling)
        if compound and len(parts := _JOINT.split(spelling)) <= _MOST_PARTS:
            found["".join(parts)] = None
    return list(found)


def runs(text: str) -> list[str]:
    """``text`` cut where Chinese begins or ends, so that 图神经网络GNN is a phrase and a word."""
    return [text] if text.isascii() else re.findall(rf"[{HAN}]+|[^{HAN}]+", text)


def is_chinese(text: str) -> bool:
    """Whether there is a Chinese character in ``text``."""
    return not text.isascii() and _HAN.search(text) is not None
