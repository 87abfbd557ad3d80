"""Every answer held against the description that the server gives of itself."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import httpx
from jsonschema import Draft202012Validator

PROBLEM = "application/problem+json"


class Description:
    """The OpenAPI of a server; called with a response it checks status, type and body."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.routes = {
            re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) + "$"): operations
            for path, operations in spec["paths"].items()
        }
        for schema in spec["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

    def __call__(self, response: httpx.Response) -> None:
        response.read()
        request = response.request
        path = request.url.raw_path.decode().partition("?")[0]
        self.check(request.method, path, response.status_code, response.headers, response.content)

    def check(self, method: str, path: str, status: int, headers: httpx.Headers, content: bytes) -> None:
        """Check an answer to a path as it was sent, without its query."""
        operations: dict[str, Any] = next((o for route, o in self.routes.items() if route.match(path)), {})
        operation = operations.get(method.lower())
        kind = headers.get("content-type", "").partition(";")[0]
        if operation is None:  # no such route, or not by this method
            if status >= HTTPStatus.BAD_REQUEST and method != "HEAD":
                self._validate({"$ref": "#/components/schemas/Problem"}, json.loads(content))
            return
        described = operation["responses"][str(status)]
        assert all(name in headers for name in described.get("headers", {}))
        if not content:
            assert "content" not in described
        elif kind in ("application/json", PROBLEM):
            self._validate(described["content"][kind]["schema"], json.loads(content))

    def _validate(self, schema: dict[str, Any], body: Any) -> None:
        whole = {**schema, "components": self.spec["components"]}
        Draft202012Validator(whole).validate(body)


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check a problem, and give its detail."""
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["status"] == status
    assert body["type"] == f"urn:recsys:{kind}"
    assert body["instance"] == response.request.url.raw_path.decode().partition("?")[0]
    detail: str = body["detail"]
    return detail
