"""``python -m carrel.atlas.compare.record [TASK…]``: run the comparisons that the docs show, and write them down.

Writes ``results/TASK.json``, which the site shows on a fresh install, and the tables in ``docs/compare.md``. Everything
is run anew; keep the machine quiet meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from carrel.atlas.cache import write_whole
from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.compare.comparison import Comparison
from carrel.atlas.compare.outcome import Outcome
from carrel.atlas.compare.plan import Plan
from carrel.atlas.parts import Table, cell
from carrel.atlas.runner import Runner

SHOWN = {
    "mqar": ("s4d", "mamba", "transformer"),
    "selective-copying": ("s4d", "mamba", "mamba:selective=false", "transformer"),
}
_HERE = Path(__file__).parent
_DOCS = _HERE.parents[3] / "docs" / "compare.md"


def record(tasks: Sequence[str]) -> None:
    """Run these (all by default), one after the other."""
    catalogue = load_catalogue()
    for task in tasks or SHOWN:
        plan = Plan.of(SHOWN[task], task, {}, catalogue)
        with tempfile.TemporaryDirectory() as scratch, Runner(catalogue, cache=Path(scratch)) as runner:
            said: set[str] = set()
            comparison = Comparison(plan, runner).run(lambda now, said=said: _tell(now, said))  # type: ignore[misc]
        if comparison.outcome is None:
            raise ValueError(f"{task}: {comparison.error or comparison.state}\n{comparison.log}")
        write_whole(_HERE / "results" / f"{task}.json", comparison.outcome.text())
        if _DOCS.is_file():
            text = _DOCS.read_text(encoding="utf-8")
            write_whole(_DOCS, written(text, task, markdown(comparison.outcome, SHOWN[task])))


def markdown(outcome: Outcome, mixers: Sequence[str]) -> str:
    """The outcome as it stands in the docs: the command, the table, the seeds, the rates."""
    main, *more = outcome.tables()
    command = f"`carrel compare {' '.join(mixers)} --task {outcome.plan['task']}`"
    facts = f"{outcome.facts} It took {outcome.seconds / 60:.0f} minutes on {outcome.date[:10]}."
    parts = [command, _rows(main), facts, *outcome.cautions, *(f"{table.title}:\n\n{_rows(table)}" for table in more)]
    return "\n\n".join(parts)


def written(text: str, task: str, section: str) -> str:
    """The docs with this task's section put between its marks. Raises ValueError where the marks are missing."""
    begin, end = f"<!-- begin {task} -->\n", f"<!-- end {task} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"docs/compare.md has no place for {task}: {begin.strip()} … {end}")
    return f"{head}{begin}\n{section}\n\n{end}{tail}"


def _rows(table: Table) -> str:
    right = [all(not isinstance(row[k], str) for row in table.rows) for k in range(len(table.columns))]
    lines = [table.columns, ["--:" if number else "---" for number in right]]
    lines += [tuple(cell(value) for value in row) for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tell(now: Comparison, said: set[str]) -> None:
    doing = now.doing
    if doing and doing not in said:
        said.add(doing)
        print(f"{now.elapsed_s:5.0f} s  {now.plan.task}: {doing}", flush=True)


if __name__ == "__main__":
    unknown = [word for word in sys.argv[1:] if word not in SHOWN]
    if unknown:
        sys.exit(f"no comparison of the docs is on {unknown[0]}; there are {', '.join(SHOWN)}")
    try:
        record(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
