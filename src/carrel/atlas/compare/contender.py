"""Who takes part in a comparison: a mixer's name, or a variant of one such as ``mamba:selective=false``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from carrel.atlas.card import Comparable
from carrel.atlas.catalogue import Catalogue
from carrel.atlas.compare.signature import options_of, parse_options
from carrel.atlas.parameter import BadParameter

_MOST = 12  # contenders in one comparison


@dataclass(frozen=True, slots=True)
class Offer:
    """A mixer that can be compared, and how it enters when nothing else is said."""

    name: str
    title: str
    family: str
    module: str
    defaults: Comparable


# Causal softmax attention with rotary positions; with the MLP beside it, a transformer's block.
YARDSTICK = Offer(
    "transformer", "Transformer", "attention", "carrel.attention.multihead:MHA", Comparable({"heads": 2}, mlp=2.0)
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One side: ``label`` is how it was asked for, ``options`` and ``mlp`` what that comes to."""

    label: str
    name: str
    module: str
    options: Mapping[str, Any]
    mlp: float

    def to_json(self) -> dict[str, Any]:
        """What a worker needs to build it."""
        return {"label": self.label, "module": self.module, "options": dict(self.options), "mlp": self.mlp}


def offers(catalogue: Catalogue) -> dict[str, Offer]:
    """Every mixer that can be compared, by name: the yardstick, then the cards with a ``[compare]`` table."""
    found = {YARDSTICK.name: YARDSTICK}
    for card in catalogue.values():
        if card.compare is not None:
            found[card.slug] = Offer(card.slug, card.title, card.family, card.module, card.compare)
    return found


def contenders(words: Iterable[str], catalogue: Catalogue) -> tuple[Contender, ...]:
    """``["s4d", "mamba:selective=false,state_dim=4"]`` as contenders.

    Raises BadParameter: nothing or too much is asked, a mixer or option is not known, a value cannot be used, or one
    side is named twice.
    """
    known = offers(catalogue)
    found: dict[tuple[Any, ...], Contender] = {}
    for word in words:
        side = _contender(word, known, catalogue)
        same = (side.name, tuple(sorted(side.options.items())), side.mlp)
        if same in found:
            raise BadParameter(f"{side.label} is {found[same].label} once more; name each side once", "mixers")
        found[same] = side
    if not found:
        raise BadParameter(f"name the mixers to compare; there are {', '.join(known)}", "mixers")
    if len(found) > _MOST:
        raise BadParameter(f"at most {_MOST} mixers are compared at once, got {len(found)}", "mixers")
    return tuple(found.values())


def _contender(word: str, known: Mapping[str, Offer], catalogue: Catalogue) -> Contender:
    name, colon, rest = word.strip().partition(":")
    if name in catalogue and name not in known:
        raise BadParameter(f"{name} is no mixer, or none that can be compared; there are {', '.join(known)}", "mixers")
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise BadParameter(f"no mixer to compare is called {name!r}; {hint}", "mixers")
    offer, given = known[name], {}
    for part in rest.split(",") if colon else ():
        option, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"\s*\w+\s*", option) or not value.strip():
            raise BadParameter(
                f"{word!r} cannot be read: a variant is written {name}:option=value,option=value", "mixers"
            )
        given[option.strip()] = value.strip()
    mlp = offer.defaults.mlp
    if "mlp" in given and "mlp" not in options_of(offer.module):  # the block's, not the mixer's
        mlp = _ratio(name, given.pop("mlp"))
    own = parse_options(name, offer.module, given)
    label = name + (":" + ",".join(part.strip() for part in rest.split(",")) if colon else "")
    return Contender(label, name, offer.module, {**offer.defaults.options, **own}, mlp)


def _ratio(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 16:
        raise BadParameter(f"{name}: mlp must be a number from 0 to 16, got {text!r}", "mixers")
    return value
