"""`carrel run` end to end, with the real worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrel.cli import main


def test_run_prints_json_as_promised_and_writes_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARREL_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["run", "min-abc", "--quick", "--json", "--html", str(tmp_path / "page.html")])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    result = json.loads(out)
    promised = [
        "slug",
        "title",
        "claim",
        "verdict",
        "finding",
        "passed",
        "seconds",
        "seeds",
        "parameters",
        "checks",
        "tables",
        "curves",
        "versions",
    ]
    assert set(promised) <= set(result)
    assert result["slug"] == "min-abc"
    assert len(result["seeds"]) == 3
    for check in result["checks"]:
        assert {"name", "low", "high", "values", "worst", "passed"} <= set(check)
        assert len(check["values"]) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Plotly" in page
    assert 'src="http' not in page
