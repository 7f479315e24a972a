"""The OpenAPI description as one page, without scripts and without other sites."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{background:#8882;padding:.1em .3em;border-radius:3px}td{padding:.15rem .8rem .15rem 0;vertical-align:top}"
)


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML of all routes with their fields."""
    schemas: dict[str, Any] = openapi.get("components", {}).get("schemas", {})
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Loradesk server</title>",
        f"<style>{STYLE}</style><h1>{escape(openapi['info']['title'])}</h1>",
        f"<p>{escape(openapi['info'].get('summary', ''))}.</p>",
        "<p>For programs: <a href=/openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            tags = ", ".join(operation.get("tags", ()))
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code> <small>{escape(tags)}</small></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = str(body.get("$ref", body.get("items", {}).get("$ref", ""))).rpartition("/")[2]
            if name in schemas:
                parts.append(_fields(schemas[name]))
    return "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        text = field.get("description", "")
        must = "required" if name in required else ""
        rows.append(f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(field))}<td>{must}<td>{escape(text)}")
    return f"<table>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    """Types of a field in a few words."""
    branches = field.get("anyOf") or field.get("oneOf")
    if branches:
        return " or ".join(dict.fromkeys(_kind(branch) for branch in branches))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {})) or 'anything'}"
    if "const" in field or "enum" in field:
        return " or ".join(map(str, field.get("enum", [field.get("const")])))
    return str(field.get("type", ""))
