"""What the API's schema says beside its routes: the bearer token, and what a refusal looks like."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

REFUSAL = "Refusal"
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")
"""Shapes that no answer here has: `app.web.error_pages` shows every error."""
_SCHEMA = {
    "title": REFUSAL,
    "description": "What every error answers: its name, a sentence, and one by field.",
    "type": "object",
    "required": ["error", "message", "request_id"],
    "properties": {
        "error": {"type": "string"},
        "message": {"type": "string"},
        "request_id": {"type": "string"},
        "fields": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_ANSWER = {
    "description": "Refused",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{REFUSAL}"}}},
}


def described(app: FastAPI) -> dict[str, Any]:
    """Return the schema of the API, built once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = schema.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for name in _OF_FASTAPI:
            schemas.pop(name, None)
        schemas[REFUSAL] = _SCHEMA
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        for path in schema["paths"].values():
            for operation in path.values():
                if "422" in operation["responses"]:
                    operation["responses"]["422"] = _ANSWER
                operation["responses"]["default"] = _ANSWER
        app.openapi_schema = schema
    return app.openapi_schema
