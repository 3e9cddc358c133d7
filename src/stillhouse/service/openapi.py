"""The OpenAPI document, with what the gate adds to each route: how to prove who you are, and how you are refused."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from stillhouse.service.gate import Rule, rule_of
from stillhouse.service.problems import MEDIA_TYPE, documented

_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key: `stillhouse keys create NAME`."},
    "attempt": {"type": "http", "scheme": "bearer", "description": "The token of one attempt at a stage."},
}


def describe(app: FastAPI) -> None:
    """Makes ``app.openapi`` tell of keys; the document is made once."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document["components"]["securitySchemes"] = _SCHEMES
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    _describe(operation, rule_of(path))
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], rule: Rule | None) -> None:
    answers: dict[str, Any] = operation["responses"]
    if rule is not Rule.OPEN:
        operation["security"] = [{"attempt" if rule is Rule.ATTEMPT else "key": []}]
    refused = (400, 429) if rule is Rule.OPEN else (400, 401, 403, 429)
    for status, answer in documented(*refused).items():
        answers.setdefault(str(status), answer)
    if MEDIA_TYPE not in answers.get("422", {}).get("content", {MEDIA_TYPE: None}):  # what FastAPI says by itself
        answers["422"] = documented(422)[422]
