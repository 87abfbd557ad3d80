"""Validation of responses against the OpenAPI description of a server."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import httpx
from jsonschema import Draft202012Validator

PROBLEM = "application/problem+json"


class Description:
    """OpenAPI description of a server. Called with a response, it checks the status, the content type and the body."""

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
        """Check the response of a path, as it was sent and without its query string."""
        operations: dict[str, Any] = next((o for route, o in self.routes.items() if route.match(path)), {})
        operation = operations.get(method.lower())
        kind = headers.get("content-type", "").partition(";")[0]
        if operation is None:  # unknown route or method
            if status >= HTTPStatus.BAD_REQUEST and method != "HEAD":
                self._validate({"$ref": "#/components/schemas/Problem"}, json.loads(content))
            return
        documented = operation["responses"][str(status)]
        assert all(name in headers for name in documented.get("headers", {}))
        if not content:
            assert "content" not in documented
        elif kind in ("application/json", PROBLEM):
            self._validate(documented["content"][kind]["schema"], json.loads(content))

    def _validate(self, schema: dict[str, Any], body: Any) -> None:
        complete_schema = {**schema, "components": self.spec["components"]}
        Draft202012Validator(complete_schema).validate(body)


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check a problem response and return its detail."""
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["status"] == status
    assert body["type"] == f"urn:recsys:{kind}"
    assert body["instance"] == response.request.url.raw_path.decode().partition("?")[0]
    detail: str = body["detail"]
    return detail
