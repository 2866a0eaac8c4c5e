"""The options of a mixer's constructor, read from its source, so that a wrong one is told before torch is loaded."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from carrel.atlas.parameter import BadParameter

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "yes or no", "str": "a word"}


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword of a constructor: the types its annotation allows, and the words where it is a choice."""

    name: str
    kinds: tuple[str, ...]
    words: tuple[str, ...]
    default: Any

    @property
    def wants(self) -> str:
        """What may be given, in words."""
        return " or ".join([_KINDS[kind] for kind in self.kinds if kind in _KINDS] + list(self.words))

    def parse(self, given: str) -> Any:
        """The value meant by a text. Raises BadParameter."""
        text = given.strip()
        if text in self.words:
            return text
        if "bool" in self.kinds and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        for kind, read in (("int", int), ("float", float)):
            if kind in self.kinds:
                try:
                    return read(text)
                except ValueError:
                    continue
        if "str" in self.kinds and text:
            return text
        raise BadParameter(f"{self.name} must be {self.wants}, got {given!r}", "mixers")


@lru_cache(maxsize=64)
def options_of(module: str) -> dict[str, Option]:
    """The keywords of ``carrel.recurrent.mamba:Mamba`` besides ``dim``, in the order of its constructor.

    Raises BadParameter where there is no such class or function, or no such file.
    """
    name, _, wanted = module.partition(":")
    try:
        body = ast.parse(_source(name)).body
    except (OSError, ImportError):
        raise BadParameter(f"there is no module {name}", "mixers") from None
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            return {option.name: option for option in _options(node.args)}
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    return {option.name: option for option in _options(part.args)}
            return {}
    raise BadParameter(f"{name} has no {wanted}", "mixers")


def parse_options(label: str, module: str, given: dict[str, str]) -> dict[str, Any]:
    """The values meant by ``{"selective": "false"}``, held to the constructor. Raises BadParameter."""
    known = options_of(module)
    values = {}
    for name, text in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise BadParameter(f"{label} has no option {name!r}; {hint}", "mixers")
        try:
            values[name] = known[name].parse(text)
        except BadParameter as error:
            raise BadParameter(f"{label}: {error}", "mixers") from None
    return values


def _source(module: str) -> str:
    """The text of a module, found without importing it or a package above it."""
    root, *rest = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(module)
    path = Path(spec.submodule_search_locations[0], *rest)
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def _options(arguments: ast.arguments) -> list[Option]:
    positional = arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    options = [_option(argument, default) for argument, default in pairs if argument.arg not in ("self", "dim")]
    return [option for option in options if option.wants]  # the others want what no text can say


def _option(argument: ast.arg, default: ast.expr | None) -> Option:
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:  # an expression such as 2 * math.pi
        value = None
    kinds = {node.id for node in ast.walk(argument.annotation or ast.Constant(None)) if isinstance(node, ast.Name)}
    words = tuple(
        str(node.value)
        for part in ast.walk(argument.annotation or ast.Constant(None))
        if isinstance(part, ast.Subscript)
        for node in ast.walk(part.slice)
        if isinstance(node, ast.Constant)
    )
    if isinstance(value, str) and not words:
        kinds.add("str")  # its annotation may be the name of a choice, which the constructor knows
    return Option(argument.arg, tuple(kind for kind in _KINDS if kind in kinds), words, value)
