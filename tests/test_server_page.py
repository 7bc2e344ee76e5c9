"""The page at `/` as files: who gets it, with which headers, and that it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from chatterbox_vllm.server.assets import assets
from tests.fake_server import Running, running

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), max_text=1000, max_body_mb=1.0) as found:
        yield found


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def test_browsers_get_the_page_and_programs_a_greeting(http: httpx.Client) -> None:
    page = http.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8" and page.text.startswith("<!doctype html>")
    for path, headers in (("/", {}), ("/", {"Accept": "application/json"}), ("/v1", BROWSER), ("/v1/", {})):
        assert http.get(path, headers=headers).json()["name"] == "chatterbox-vllm"
    assert http.get("/").headers["vary"] == page.headers["vary"] == "Accept"
    head = http.head("/", headers=BROWSER)
    assert head.headers["content-length"] == str(len(page.content)) and not head.content


def test_nothing_comes_from_elsewhere(http: httpx.Client) -> None:
    policy = dict(
        part.split(" ", 1) for part in http.get("/", headers=BROWSER).headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in str(policy) and "*" not in str(policy)
    for name, asset in assets().items():
        text = asset.data.decode()
        assert not re.search(r"(?<!xmlns=\")https?://(?!localhost)", text), name
        # What the policy refuses.
        assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", text), name


def test_every_file_that_is_named_is_there(http: httpx.Client) -> None:
    named = set(re.findall(r'(?:src|href)="/page/([^"]+)"', assets()["page.html"].data.decode()))
    for name, asset in assets().items():
        if name.endswith(".js"):
            named |= set(re.findall(r'(?:from|import\()\s*"\./([^"]+)"', asset.data.decode()))
    assert named | {"page.html"} == set(assets())
    for name in named:
        answer = http.get(f"/page/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        again = http.get(f"/page/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/%2e%2e/app.py", "__init__.py", ""])
def test_no_other_file_is_given(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/page/{name}")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_what_the_page_knows_of_the_server(http: httpx.Client) -> None:
    facts = http.get("/page/facts.json").json()
    assert facts["max_text"] == 1000 and 700_000 < facts["max_clip"] < 800_000
    (model,) = facts["models"]
    assert (model["name"], model["languages"]) == ("fake", {"en": "English"})
    assert model["fields"]["speed"] == {"low": 0.25, "high": 4, "default": 1}
    assert model["fields"]["exaggeration"] == {"low": 0, "high": 2, "default": 0.5}
    assert "seed" not in model["fields"]
