"""What a page's function is given: the desk, the renderer, the built files."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from typing import Annotated

from fastapi import Depends, Request

from carrel.atlas.result import Result
from carrel.desk import Desk
from carrel.web.assets import Assets
from carrel.web.render import Renderer


@dataclass(frozen=True)
class Site:
    """One running site; once ``closing`` is set, answers that would go on for long end."""

    desk: Desk
    assets: Assets
    render: Renderer
    closing: Event = field(default_factory=Event)
    _committed: dict[str, Result | None] = field(default_factory=dict)

    def last_result(self, slug: str) -> Result | None:
        """What the method's page shows: the last run here since the site started, else the committed result."""
        here = (job for job in self.desk.runner.jobs() if job.slug == slug and job.result is not None)
        job = next(here, None)
        if job is not None:
            return job.result
        if slug not in self._committed:
            self._committed[slug] = self.desk.catalogue.result(slug)
        return self._committed[slug]


def site_of(request: Request) -> Site:
    """The site that this request came to."""
    site: Site = request.app.state.site
    return site


SiteDep = Annotated[Site, Depends(site_of)]
