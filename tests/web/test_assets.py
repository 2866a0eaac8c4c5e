"""The built front end: names, caching, compression; and the stamp that says when it is stale."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from carrel.web.assets import Assets

ROOT = Path(__file__).parents[2]


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "query_string": b""})


@pytest.fixture
def built(tmp_path: Path) -> Path:
    for name in ("assets", "vendor/mathjax-4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "assets/page-abc.js").write_text("let a = 1;\n" * 500, encoding="utf-8")
    (tmp_path / "vendor/mathjax-4/font.woff2").write_bytes(b"wOF2" * 1000)
    (tmp_path / "secret.txt").write_text("not for you", encoding="utf-8")
    entry = {"file": "assets/page-abc.js", "name": "page", "isEntry": True}
    (tmp_path / "manifest.json").write_text(json.dumps({"src/page.ts": entry}), encoding="utf-8")
    (tmp_path / "vendor.json").write_text(json.dumps({"mathjax": "vendor/mathjax-4"}), encoding="utf-8")
    return tmp_path


def test_a_name_leads_to_its_hashed_file(built: Path) -> None:
    assets = Assets(built)
    assert assets.built
    assert assets.url("page") == "/static/assets/page-abc.js"
    assert assets.url("mathjax") == "/static/vendor/mathjax-4"
    assert assets.url("unheard-of") == ""


def test_files_are_kept_by_the_browser_for_ever_and_compressed_where_it_helps(built: Path) -> None:
    assets = Assets(built)
    answer = assets.answer("assets/page-abc.js", request(accept_encoding="gzip, br"))
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    assert gzip.decompress(answer.body) == (built / "assets/page-abc.js").read_bytes()
    assert len(answer.body) < 200
    font = assets.answer("vendor/mathjax-4/font.woff2", request(accept_encoding="gzip"))
    assert "content-encoding" not in font.headers
    assert font.headers["content-type"] == "font/woff2"
    again = assets.answer("assets/page-abc.js", request(if_none_match=answer.headers["etag"]))
    assert (again.status_code, again.body) == (304, b"")


@pytest.mark.parametrize(
    "name", ["secret.txt", "../secret.txt", "assets/../secret.txt", "manifest.json", "/etc/passwd", ""]
)
def test_nothing_else_is_given_out(built: Path, name: str) -> None:
    assert Assets(built).answer(name, request()).status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/assets"]
)
def test_no_path_leads_out_of_the_folder(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_plotly_comes_from_the_python_package(client: TestClient) -> None:
    answer = client.get("/static/vendor/plotly.min.js", headers={"accept-encoding": "gzip"})
    assert answer.status_code == 200
    assert "Plotly" in answer.text
    assert answer.headers["content-encoding"] == "gzip"


def test_a_desk_without_built_files_still_opens_and_says_what_to_run(desk, tmp_path: Path) -> None:
    from carrel.web.app import create_app

    with TestClient(create_app(desk, static=tmp_path), base_url="http://127.0.0.1") as client:
        answer = client.get("/")
    assert answer.status_code == 200
    assert "python hatch_build.py" in answer.text


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def front(tmp_path: Path) -> Path:
    (tmp_path / "frontend/src").mkdir(parents=True)
    (tmp_path / "src/carrel/web/static").mkdir(parents=True)
    (tmp_path / "frontend/package.json").write_text("{}", encoding="utf-8")
    (tmp_path / "frontend/src/page.ts").write_text("export {};\n", encoding="utf-8")
    return tmp_path


def test_assets_are_stale_until_built_and_again_when_a_source_changes(hook: ModuleType, front: Path) -> None:
    assert hook.stale(front)
    mark = front / "src/carrel/web/static/.stamp"
    mark.write_text(hook.stamp(front / "frontend") + "\n", encoding="utf-8")
    assert not hook.stale(front)
    (front / "frontend/src/page.ts").write_bytes(b"export {};\r\n")
    assert not hook.stale(front), "line endings are no change"
    (front / "frontend/src/more.css").write_text("a {}", encoding="utf-8")
    assert hook.stale(front)


def test_a_source_that_moves_to_another_file_is_a_change(hook: ModuleType, front: Path) -> None:
    before = hook.stamp(front / "frontend")
    (front / "frontend/src/page.ts").rename(front / "frontend/src/pages.ts")
    assert hook.stamp(front / "frontend") != before


def test_node_is_asked_for_only_when_something_is_stale(hook: ModuleType, front: Path) -> None:
    pytest.importorskip("hatchling", reason="the hook's own class needs hatchling")
    front_end = hook.get_build_hook()(str(front), {}, None, None, str(front), "wheel")
    assert front_end.dependencies() == [hook.NODE]
    (front / "src/carrel/web/static/.stamp").write_text(hook.stamp(front / "frontend"), encoding="utf-8")
    assert front_end.dependencies() == []


def test_a_registry_that_is_down_is_told_in_one_sentence(
    hook: ModuleType, front: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise hook.BuildFailed("the front-end packages could not be fetched from the npm registry")

    monkeypatch.setattr(hook, "build", fail)
    monkeypatch.setattr(hook, "ROOT", front)
    monkeypatch.setattr(hook, "stale", lambda root=front: True)
    assert hook.main([]) == 1
    assert capsys.readouterr().err == "carrel: the front-end packages could not be fetched from the npm registry\n"


def test_the_lock_names_no_host() -> None:
    lock = (ROOT / "frontend/package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert "integrity" in lock
    assert "omit-lockfile-registry-resolved=true" in (ROOT / "frontend/.npmrc").read_text(encoding="utf-8")
