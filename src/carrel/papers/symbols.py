"""TeX written out for people and search engines: math in Unicode where that is simple, commands dropped."""

from __future__ import annotations

import re

_GREEK = """
alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ mu=μ
nu=ν xi=ξ omicron=ο pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω
Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω
"""
_SYMBOLS = """
times=× cdot=· pm=± mp=∓ div=÷ ast=* star=⋆ circ=∘ bullet=• oplus=⊕ ominus=⊖ otimes=⊗ oslash=⊘ odot=⊙ dagger=† leq=≤
le=≤ geq=≥ ge=≥ neq=≠ ne=≠ ll=≪ gg=≫ lesssim=≲ gtrsim=≳ approx=≈ sim=∼ simeq=≃ cong=≅ equiv=≡ propto=∝ prec=≺ succ=≻
in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃ supseteq=⊇ cup=∪ cap=∩ setminus=∖ emptyset=∅ forall=∀ exists=∃ neg=¬
land=∧ wedge=∧ lor=∨ vee=∨ to=→ rightarrow=→ leftarrow=← leftrightarrow=↔ mapsto=↦ longrightarrow=→ Rightarrow=⇒
Leftarrow=⇐ Leftrightarrow=⇔ iff=⇔ implies=⇒ uparrow=↑ downarrow=↓ infty=∞ partial=∂ nabla=∇ ell=ℓ hbar=ℏ Re=ℜ Im=ℑ
aleph=ℵ sum=∑ prod=∏ int=∫ oint=∮ sqrt=√ angle=∠ degree=° langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ mid=|
vert=| Vert=‖ perp=⊥ parallel=∥ prime=′ top=⊤ bot=⊥ ldots=… dots=… cdots=⋯ vdots=⋮ colon=: lbrace={ rbrace=}
backslash=\\ checkmark=✓ square=□ triangle=△ textasciitilde=~ textasciicircum=^ textbackslash=\\ textbar=| textless=<
textgreater=> textdegree=° S=§ P=¶ copyright=© textregistered=® texttrademark=™ pounds=£ euro=€ texteuro=€
textendash=– textemdash=— textmu=μ textquoteleft=‘ textquoteright=’ textquotedblleft=“ textquotedblright=” LaTeX=LaTeX
TeX=TeX i=ı j=ȷ AA=Å
"""
# names that only say how something looks; their argument, if any, stays
_STYLES = """
left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr limits nolimits displaystyle textstyle
scriptstyle boldmath unboldmath rm it bf sc sl tt sf em cal small large Large tiny normalsize footnotesize scriptsize
itshape bfseries scshape ttfamily centering noindent smash protect relax xspace mathstrut hfill not mathrm mathbf
mathit mathcal mathbb mathfrak mathsf mathtt mathscr bm boldsymbol operatorname text textrm textbf textit texttt
textsc textsf emph underline overline bar hat tilde widehat widetilde vec dot ddot mbox hbox bold Bbb underbrace
overbrace mathbin mathrel mathop textsuperscript textsubscript uline url
"""
_FUNCTIONS = """
log ln lg exp sin cos tan cot sinh cosh tanh arcsin arccos arctan min max sup inf lim limsup liminf arg det dim ker
deg gcd hom mod bmod Pr
"""
_BLANKS = """
quad qquad enspace par item newline and
"""
_SYMBOL = dict(pair.split("=", 1) for pair in (_GREEK + _SYMBOLS).split()) | dict.fromkeys(_BLANKS.split(), " ")
_STYLE = frozenset(_STYLES.split())
_FUNCTION = frozenset(_FUNCTIONS.split())
_DROPPED = re.compile(  # with their arguments
    r"\\(?:begin|end|label|tag|color|textcolor|vspace|hspace|footnotemark|(?:eq|page|auto|c)?ref"
    r"|[Cc]ite[A-Za-z]*|nocite|includegraphics|thanks|phantom|unicode)\*?\s*(?:\[[^\[\]]*\])*\s*\{[^{}]*\}"
)
_LINK = re.compile(r"\\href\s*\{[^{}]*\}\s*\{")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_SCRIPT = re.compile(r"([_^])\s*\{([^{}\\]*)\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?([ \t]*)|\\(.)", re.DOTALL)
_BRACES = str.maketrans({"{": None, "}": None, "\1": "{", "\2": "}"})  # escaped ones wait as \1 and \2
_PROTECTED = re.compile(r"\{([A-Za-z][A-Za-z0-9-]*)\}")
_TIE = re.compile(r"(?<=[^\s~(])~(?=[^\s~])")
_QUOTES_AND_DASHES = re.compile(r"``|''|---?")
_TYPOGRAPHY = {"``": "“", "''": "”", "---": "—", "--": "–"}
_ESCAPED = {",": "\u2009", "!": "", "-": "", "/": "", "@": "", "|": "‖", "{": "\1", "}": "\2"}
_ESCAPED |= dict.fromkeys(";: \\\n", " ")
_DELIMITERS = re.compile(r"\A(?:\$\$?|\\[(\[])|(?:\$\$?|\\[)\]])\Z")


def unicode_math(tex: str) -> str:
    r"""One piece of math, delimiters included, in plain characters: ``$\alpha$`` is α, ``$x^2$`` is x^2.

    What has no simple form loses its commands and keeps its letters. Cost: O(len(tex)).
    """
    inner = _DELIMITERS.sub("", tex)
    if "\\" in inner or "{" in inner:
        inner = _DROPPED.sub(" ", inner)
        inner = _DEGREES.sub("°", inner)
        for _ in range(3):  # nested ones, innermost first
            if "frac" not in inner:
                break
            inner = _FRACTION.sub(lambda match: f"{_grouped(match[1])}/{_grouped(match[2])}", inner)
        inner = _COMMAND.sub(_written_out, inner)
        inner = _SCRIPT.sub(lambda match: match[1] + _grouped(match[2]), inner).translate(_BRACES)
    return inner.replace("&", " ").replace("~", " ")


def unmarked(text: str) -> str:
    r"""Text outside math without its commands: ``\emph{so}`` is so, ``\cite{x}`` goes, ``50\%`` is 50%."""
    if "\\" in text:
        text = _COMMAND.sub(_written_out, _LINK.sub("{", _DROPPED.sub("", text))).translate(_BRACES)
    elif "{" in text:
        text = _PROTECTED.sub(r"\1", text)
    if "~" in text:
        text = _TIE.sub(" ", text)
    return _QUOTES_AND_DASHES.sub(lambda match: _TYPOGRAPHY[match[0]], text)


def _grouped(inside: str) -> str:
    inside = inside.strip()
    bare = inside[1:] if inside[:1] == "-" else inside
    return inside if bare.isalnum() or (bare[:1] == "\\" and bare[1:].isalpha()) else f"({inside})"


def _written_out(match: re.Match[str]) -> str:
    name, blanks, escaped = match[1], match[2], match[3]
    if name is None:
        return _ESCAPED.get(escaped, escaped)
    following = match.string[match.end() : match.end() + 1]
    if name in _SYMBOL:
        return _SYMBOL[name] + blanks
    if name in _STYLE or (following == "{" and name not in _FUNCTION and not _is_word(name, match)):
        return ""
    before = match.string[match.start() - 1 : match.start()]
    return (" " if before.isalnum() else "") + name + (blanks or (" " if following.isalnum() else ""))


def _is_word(name: str, match: re.Match[str]) -> bool:
    r"""Whether an unknown command is an author's own abbreviation, as in ``\method{}`` and ``\BERT{large}``."""
    return match.string.startswith("{}", match.end()) or (len(name) > 2 and name.isupper())
