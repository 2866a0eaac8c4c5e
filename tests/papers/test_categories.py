"""Categories: one canonical code each, and A + B - C over them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.categories import (
    BadExpression,
    UnknownCategory,
    archives,
    canonical,
    parse_expression,
    taxonomy,
)


@pytest.mark.parametrize(
    ("code", "home"),
    [
        ("cs.NA", "math.NA"),
        ("cs.SY", "eess.SY"),
        ("math.IT", "cs.IT"),
        ("math.MP", "math-ph"),
        ("q-fin.EC", "econ.GN"),
        ("stat.TH", "math.ST"),
        ("cmp-lg", "cs.CL"),
        ("alg-geom", "math.AG"),
        ("chao-dyn", "nlin.CD"),
        ("cs.LG", "cs.LG"),
        ("CS.lg", "cs.LG"),
        ("Cond-Mat.Mes-Hall", "cond-mat.mes-hall"),
        (" hep-th ", "hep-th"),
        ("astro-ph", "astro-ph"),
        ("cs.ZZ", "cs.ZZ"),
    ],
)
def test_every_code_has_one_home(code, home):
    assert canonical(code) == home
    assert canonical(home) == home


def test_the_taxonomy_holds_canonical_codes_with_names_in_two_languages():
    assert len(taxonomy()) > 140
    assert all(canonical(code) == code == category.code for code, category in taxonomy().items())
    assert taxonomy()["cs.LG"].name_en == "Machine Learning"
    assert taxonomy()["cs.LG"].name_zh
    assert archives()["hep-th"].group == "physics"


@pytest.mark.parametrize(
    ("text", "spelled", "include", "exclude"),
    [
        ("cs.LG", "cs.LG", {"cs.LG"}, set()),
        ("cs.LG+cs.CL-cs.CV", "cs.LG+cs.CL-cs.CV", {"cs.LG", "cs.CL"}, {"cs.CV"}),
        ("cs.LG,cs.CL", "cs.LG+cs.CL", {"cs.LG", "cs.CL"}, set()),
        ("cs.LG cs.CL", "cs.LG+cs.CL", {"cs.LG", "cs.CL"}, set()),
        (" CS.lg ,, cs.LG+", "cs.LG", {"cs.LG"}, set()),
        ("hep-th", "hep-th", {"hep-th"}, set()),
        ("math-ph", "math-ph", {"math-ph"}, set()),
        ("hep-th-math-ph", "hep-th-math-ph", {"hep-th"}, {"math-ph"}),
        ("cond-mat.mes-hall-hep-th", "cond-mat.mes-hall-hep-th", {"cond-mat.mes-hall"}, {"hep-th"}),
        ("cond-mat.mes-hall-cond-mat.mtrl-sci-cs.LG", None, {"cond-mat.mes-hall"}, {"cond-mat.mtrl-sci", "cs.LG"}),
        ("q-bio.NC-q-fin.ST", "q-bio.NC-q-fin.ST", {"q-bio.NC"}, {"q-fin.ST"}),
        ("cs.LG-cs.CV-cs.CL+stat.ML", "cs.LG+stat.ML-cs.CV-cs.CL", {"cs.LG", "stat.ML"}, {"cs.CV", "cs.CL"}),
        ("-cs.CV,cs.LG", "cs.LG-cs.CV", {"cs.LG"}, {"cs.CV"}),
        ("cs.LG -cs.CV", "cs.LG-cs.CV", {"cs.LG"}, {"cs.CV"}),
        ("cs.NA", "math.NA", {"math.NA"}, set()),
        ("cs.NA+math.NA", "math.NA", {"math.NA"}, set()),
        ("cmp-lg", "cs.CL", {"cs.CL"}, set()),
        ("chao-dyn-patt-sol", "nlin.CD-nlin.PS", {"nlin.CD"}, {"nlin.PS"}),
        ("physics.ao-ph-physics.acc-ph", None, {"physics.ao-ph"}, {"physics.acc-ph"}),
        ("cs.LG+cs.CV-cs.CV", "cs.LG-cs.CV", {"cs.LG"}, {"cs.CV"}),
    ],
)
def test_plus_joins_and_minus_takes_away(text, spelled, include, exclude):
    got = parse_expression(text)
    assert (got.include, got.exclude) == (include, exclude)
    assert spelled is None or got.text == spelled
    assert parse_expression(got.text) == got
    assert parse_expression(got.text).text == got.text


def test_an_archive_means_all_it_holds_and_what_is_also_listed_there():
    cs = parse_expression("cs")
    assert cs.text == "cs"
    assert {"cs.LG", "cs.CV"} <= cs.include
    assert {"math.NA", "eess.SY"} <= cs.include  # they are cs.NA and cs.SY as well
    assert all(code.startswith("cs.") for code in cs.include - {"math.NA", "eess.SY"})
    assert {"math.CO", "cs.IT", "math-ph"} <= parse_expression("math").include
    assert {"astro-ph", "astro-ph.GA"} <= parse_expression("astro-ph").include
    assert parse_expression("cs-cs.CV").exclude == {"cs.CV"}


def test_a_paper_is_listed_if_any_category_is_included_and_none_excluded():
    expression = parse_expression("cs.LG+cs.CL-cs.CV")
    assert expression.matches(("stat.ML", "cs.LG"))
    assert not expression.matches(("cs.LG", "cs.CV"))
    assert not expression.matches(("stat.ML",))
    assert not expression.matches(())


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("cs.LGG", "cs.LG"),
        ("cs.LM", "cs."),
        ("LG", "cs.LG"),
        ("cs-CV", "cs.CV"),
        ("hepth", "hep-th"),
        ("cond-mat.meshall", "cond-mat.mes-hall"),
        ("cs.LG+mathh", "math"),
        ("physics.optic", "physics.optics"),
    ],
)
def test_an_unknown_code_is_refused_with_the_nearest_that_exists(text, near):
    with pytest.raises(UnknownCategory, match=rf"did you mean '{near}"):
        parse_expression(text)


@pytest.mark.parametrize(
    "text", ["", " ", "+", "-", ",,", "-cs.CV", "cs.LG-", "cs.LG--cs.CV", "cs.CV-cs", "cs.CV-cs.CV"]
)
def test_an_expression_that_lists_nothing_is_refused(text):
    with pytest.raises(BadExpression):
        parse_expression(text)


def test_a_word_unlike_any_code_is_refused_without_a_guess():
    with pytest.raises(UnknownCategory, match="wanted a code such as"):
        parse_expression("注意力机制")


def test_a_long_expression_is_refused():
    with pytest.raises(BadExpression, match="500 characters"):
        parse_expression("cs.LG+" * 200)


@given(st.text(alphabet="csLG.V+-, hepthmatonde\x00方", max_size=40) | st.text(max_size=40))
def test_any_text_gives_an_expression_or_bad_expression(text):
    try:
        got = parse_expression(text)
    except BadExpression:
        return
    assert parse_expression(got.text) == got


CODES = sorted(set(taxonomy()) - {"hep-lat"})


@given(
    st.lists(st.sampled_from(CODES), min_size=1, max_size=5, unique=True),
    st.lists(st.sampled_from(CODES), max_size=4),
)
def test_hyphens_in_codes_are_never_taken_for_minus(included, excluded):
    got = parse_expression("+".join(included) + "".join(f"-{code}" for code in excluded) + "+hep-lat")
    assert got.exclude == set(excluded)
    assert got.include == {*included, "hep-lat"} - set(excluded)


def test_every_category_of_the_real_listings_is_known(shared, daily_rows):
    assert {canonical(code) for row in daily_rows for code in row["categories"]} <= set(taxonomy())
    old = json.loads((shared / "data/papers/arxiv/taxonomy/arXiv_category_def.json").read_text(encoding="utf-8"))
    for entry in old:
        if not entry["category"].startswith("test"):
            assert parse_expression(entry["category"]).include
