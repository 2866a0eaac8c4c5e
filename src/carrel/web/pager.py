"""Which part of a list a page shows."""

from __future__ import annotations

from dataclasses import dataclass

PER_PAGE = 20


@dataclass(frozen=True)
class Pager:
    """Page ``page`` (from 1) of ``total`` things, ``per`` on each. A page beyond the last is the last."""

    total: int
    asked: int = 1
    per: int = PER_PAGE

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.per))

    @property
    def page(self) -> int:
        return min(max(1, self.asked), self.pages)

    @property
    def start(self) -> int:
        return (self.page - 1) * self.per

    @property
    def end(self) -> int:
        return min(self.total, self.start + self.per)

    @property
    def next(self) -> int | None:
        return self.page + 1 if self.page < self.pages else None

    @property
    def before(self) -> int | None:
        return self.page - 1 if self.page > 1 else None
