"""The site's process stays light: no torch, no plotly package, and well under 250 MB with every kind of page served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

VISIT = r"""
import re, sys
from pathlib import Path
from starlette.testclient import TestClient
from carrel.desk import open_desk
from carrel.web.app import create_app

with open_desk(Path(sys.argv[1])) as desk:
    desk.refill()
    with TestClient(create_app(desk), base_url="http://127.0.0.1") as client:
        paths = ["/", "/arxiv/cs.LG", "/arxiv/2303.06349", "/search?q=state+space", "/methods", "/compare", "/healthz"]
        paths += [f"/methods/{slug}" for slug in desk.catalogue] + ["/static/vendor/plotly.min.js"]
        for path in paths:
            assert client.get(path).status_code == 200, path
# Not getrusage: the peak that it tells may be that of the test runner, from which this process was forked.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
print(*sorted({"torch", "triton", "numba", "plotly", "numpy"} & set(sys.modules)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
def test_serving_every_kind_of_page_takes_less_than_250_mb_and_loads_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", VISIT, str(tmp_path)], capture_output=True, text=True, check=True)
    megabytes, loaded, *_ = [*done.stdout.split("\n"), ""]
    assert float(megabytes) < 250
    assert loaded == ""
