"""The site's process stays light: no torch, no plotly package, and well under 250 MB with every kind of page served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VISIT = """
import resource, sys
from pathlib import Path
from starlette.testclient import TestClient
from carrel.desk import open_desk
from carrel.web.app import create_app

with open_desk(Path(sys.argv[1])) as desk:
    desk.refill()
    with TestClient(create_app(desk), base_url="http://127.0.0.1") as client:
        paths = ["/", "/arxiv/cs.LG", "/arxiv/2303.06349", "/search?q=state+space", "/methods", "/healthz"]
        paths += [f"/methods/{slug}" for slug in desk.catalogue] + ["/static/vendor/plotly.min.js"]
        for path in paths:
            assert client.get(path).status_code == 200, path
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*sorted({"torch", "triton", "numba", "plotly", "numpy"} & set(sys.modules)))
"""


def test_serving_every_kind_of_page_takes_less_than_250_mb_and_loads_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", VISIT, str(tmp_path)], capture_output=True, text=True, check=True)
    megabytes, loaded, *_ = [*done.stdout.split("\n"), ""]
    assert float(megabytes) < 250
    assert loaded == ""
