"""A comparison as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

from carrel.atlas.compare.outcome import Outcome
from carrel.atlas.html import document, figure_block, table_block


def page(outcome: Outcome) -> str:
    """The whole page. Raises LabMissing, with what to install, if plotly is not there."""
    title = escape(f"Mixers on {outcome.title}")
    main, *more = outcome.tables()
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    facts = " · ".join((f"{outcome.seconds:.0f} s", outcome.date[:16].replace("T", " "), versions))
    body = [
        f'<p class="quiet">Comparison</p><h1>{title}</h1>',
        table_block(main),
        f'<p class="quiet">{escape(outcome.facts)}</p>',
        *(f'<p class="found caveat"><span>{escape(caution)}</span></p>' for caution in outcome.cautions),
        *(figure_block(curve) for curve in outcome.curves()),
        *(table_block(table) for table in more),
        f'<p class="quiet">{escape(facts)}</p>',
    ]
    return document(title, body)
