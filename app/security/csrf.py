"""Which unsafe requests come from our own pages: Fetch metadata, with Origin as fallback."""

from collections.abc import Mapping

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADER = "X-CSRF-Token"
FIELD = "csrf_token"
BODY_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/offset+octet-stream",
)


def has_bearer(headers: Mapping[str, str]) -> bool:
    """Return whether an API token is sent: no page of another site can add that header."""
    return headers.get("authorization", "").lower().startswith("bearer ")


def refusal(method: str, headers: Mapping[str, str]) -> str | None:
    """Return why an unsafe request is refused, or None. `headers` has lower-case names."""
    if method in SAFE_METHODS or has_bearer(headers):
        return None
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):
            return None
        return f"The request came from another site (Sec-Fetch-Site: {site})."
    origin = headers.get("origin")
    if origin is None:
        return "The request names neither its site nor its origin; send an API token instead."
    host = origin.partition("://")[2]
    if host and host == headers.get("host"):
        return None
    return "The request came from another origin."


def content_type_refusal(method: str, headers: Mapping[str, str]) -> str | None:
    """Return why the body is refused: text/plain is what a foreign form can send as JSON."""
    if method in SAFE_METHODS:
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if kind in BODY_TYPES or (not kind and not has_body):
        return None
    return f"Bodies of type {kind or '(none)'} are not accepted; use {', '.join(BODY_TYPES)}."
