"""Who may ask, from where, and what every answer carries."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

POLICY = (
    "default-src 'self'; script-src 'self'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.mark.parametrize(
    "path", ["/", "/methods", "/nowhere", "/healthz", "/static/none", "/favicon.svg", "/runs/none"]
)
def test_every_answer_carries_the_policy(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("host", ["127.0.0.1:8477", "localhost", "LOCALHOST:1", "[::1]:8477"])
def test_the_desk_answers_to_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8477", "localhost@evil", "", "[::2]", "a:b:c"]
)
def test_the_desk_does_not_answer_to_other_names(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "does not answer to the name" in answer.text
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8477.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8477", "sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/methods/ring-memory/run", "/runs/none/cancel", "/theme", "/nowhere"])
def test_a_form_from_another_site_is_refused_in_a_sentence(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    answer = client.post(path, data={"seeds": "1"}, headers=headers)
    assert answer.status_code == 403
    assert "came from another site, so nothing was done" in answer.text


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "http://127.0.0.1:8477", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}],
)
def test_a_form_of_the_desk_itself_is_taken(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/theme", data={"theme": "system"}, headers=headers).status_code == 303


def test_other_methods_that_change_things_are_checked_as_well(client: TestClient) -> None:
    assert client.delete("/theme", headers={"origin": "https://evil.example"}).status_code == 403
    assert client.put("/theme", content=b"", headers={"origin": "http://127.0.0.1:8477"}).status_code == 405


def test_a_form_that_is_too_long_or_hides_its_length_is_refused(client: TestClient) -> None:
    assert client.post("/theme", data={"theme": "x" * 70_000}).status_code == 413
    assert client.post("/theme", content=(piece for piece in [b"theme=dark"])).status_code == 411
