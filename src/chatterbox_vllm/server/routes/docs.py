"""`/docs`: the OpenAPI description as a page, with nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

router = APIRouter()

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }}
code {{ font-size: 90% }} h2 {{ font-size: 1.1rem; margin: 2rem 0 0 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }}
</style></head><body><h1>{title}</h1>
<p>The description for programs is <a href="/openapi.json">/openapi.json</a>. WebSockets, which it cannot hold, are at
<code>/v1/realtime</code> (OpenAI's protocol) and <code>/v1/audio/speech/stream</code> (text in pieces).</p>
{operations}</body></html>
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """All operations with their fields and answers."""
    schema = request.app.openapi()
    info = schema["info"]
    title = escape(f"{info['title']} {info['version']}")
    return HTMLResponse(_PAGE.format(title=title, operations="\n".join(_operations(schema))))


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}</h2>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"
            rows = [*_parameters(operation), *_body(schema, operation)]
            if rows:
                yield "<table><tr><th>field</th><th>type</th><th>meaning</th></tr>"
                yield "".join(f"<tr><td><code>{n}</code></td><td>{t}</td><td>{m}</td></tr>" for n, t, m in rows)
                yield "</table>"


def _parameters(operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for parameter in operation.get("parameters", ()):
        value = parameter["schema"]
        meaning = parameter.get("description") or value.get("description", "")
        yield _name(parameter["name"], parameter.get("required", False)), escape(_type(value)), escape(meaning)


def _body(schema: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        for name, value in body["properties"].items():
            needed = name in body.get("required", ())
            yield _name(name, needed), escape(_type(value)), escape(value.get("description", ""))


def _name(name: str, required: bool) -> str:
    return escape(name) + (" (required)" if required else "")


def _type(value: dict[str, Any]) -> str:
    """A type in words, with its range or its values."""
    if "anyOf" in value:
        return " or ".join(_type(each) for each in value["anyOf"] if each.get("type") != "null")
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2])
    if "enum" in value or "const" in value:
        return ", ".join(map(str, value.get("enum") or [value["const"]]))
    low, high = value.get("minimum", value.get("exclusiveMinimum")), value.get("maximum")
    span = "" if low is None and high is None else f", {'' if low is None else low} to {'' if high is None else high}"
    return str(value.get("format") == "binary" and "file" or value.get("type", "any")) + span
