"""One place that turns an error into a page, an htmx answer (a toast) or JSON."""

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from app.errors import AppError, NotSignedIn
from app.web.deps import principal_for_page
from app.web.forms import field_errors
from app.web.tables import UnknownOrder
from app.web.templating import is_htmx, render

SERVER_ERROR = 500
WORDS = {
    404: ("Not here", "There is nothing at this address."),
    405: ("Not allowed here", "This address does not take this kind of request."),
    400: ("The request is not well-formed", "The server could not read the request."),
}
UNKNOWN = ("Something failed on our side", "It was logged under the request id below.")

log = structlog.get_logger()
GONE = ("08", "57P")
"""Classes of SQLSTATE: connection exception, and the server shut down or is starting."""
UNSTORABLE = "Text must hold no NUL character, and a whole number must fit 64 bits."
NO_DATABASE = "Nothing was changed. Try again when it is back."


def wants_json(request: Request) -> bool:
    if request.url.path.startswith("/api/"):
        return True
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def _describe(error: Exception) -> tuple[int, str, str, dict[str, str]]:
    """Return status, title, sentence and field errors."""
    if isinstance(error, AppError):
        return error.status, error.title, error.message, error.fields
    if isinstance(error, RequestValidationError):
        fields = field_errors(error.errors())
        text = " ".join(f"{name}: {message}" for name, message in fields.items())
        return 422, "Something in the request needs a change", text, fields
    if isinstance(error, HTTPException):
        title, text = WORDS.get(error.status_code, (HTTPStatus(error.status_code).phrase, ""))
        return error.status_code, title, text, {}
    if isinstance(error, DataError):
        return 422, "A value cannot be stored", UNSTORABLE, {}
    if _is_away(error):
        return 503, "The database does not answer", NO_DATABASE, {}
    return SERVER_ERROR, *UNKNOWN, {}


def _sign_in(request: Request, error: NotSignedIn) -> Response:
    """Send a person to the sign-in page and back; htmx follows by a full page load."""
    page = request.url.path
    if request.url.query:
        page += f"?{request.url.query}"
    if is_htmx(request):
        current = request.headers.get("HX-Current-URL", "")
        page = "/" + current.partition("://")[2].partition("/")[2] if current else page
        target = f"/sign-in?next={quote(page, safe='')}"
        return Response(status_code=error.status, headers={"HX-Redirect": target})
    target = "/sign-in" if page == "/" else f"/sign-in?next={quote(page, safe='')}"
    return RedirectResponse(target, status_code=303)


def show_error(request: Request, error: Exception) -> Response:
    """Answer an error in the form the caller can use."""
    status, title, text, fields = _describe(error)
    if isinstance(error, DataError) and request.method in ("GET", "HEAD"):
        status, (title, text) = HTTPStatus.NOT_FOUND, WORDS[HTTPStatus.NOT_FOUND]
    request_id: str = getattr(request.state, "request_id", "")
    name = type(error).__name__ if isinstance(error, AppError) else "Error"
    extra = dict(getattr(error, "headers", None) or {})
    if wants_json(request):
        if isinstance(error, NotSignedIn):
            extra["WWW-Authenticate"] = "Bearer"
        body: dict[str, Any] = {"error": name, "message": text, "request_id": request_id}
        if fields:
            body["fields"] = fields
        return JSONResponse(body, status_code=status, headers=extra)
    if isinstance(error, UnknownOrder):
        return RedirectResponse(error.instead, 303)
    if isinstance(error, NotSignedIn) and request.method in ("GET", "HEAD"):
        return _sign_in(request, error)
    if is_htmx(request):
        if isinstance(error, NotSignedIn):
            return _sign_in(request, error)
        toast = {"kind": "bad", "title": title, "text": text, "request": request_id}
        trigger = json.dumps({"toast": toast})
        headers = {"HX-Reswap": "none", "HX-Trigger": trigger, **extra}
        return Response(status_code=status, headers=headers)
    context = {"status": status, "title": title, "text": text, "request_id": request_id}
    return render(request, "errors/error.html", context, status=status, headers=extra)


def _is_away(error: Exception) -> bool:
    """Return whether the database cannot be reached; a deadlock or a full disk is another thing."""
    if not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(GONE)


def _handler(request: Request, error: Exception) -> Response:
    """Run in a worker thread: an address without a route has not asked yet who is calling."""
    if isinstance(error, DBAPIError):
        log.error("database_error", exc_info=error)
    if _is_away(error):
        request.state.principal = None  # who is calling stands in the database
    if not wants_json(request) and not hasattr(request.state, "principal"):
        request.state.principal = principal_for_page(request)
    return show_error(request, error)


def install(app: FastAPI) -> None:
    for kind in (AppError, RequestValidationError, HTTPException, DataError, OperationalError):
        app.add_exception_handler(kind, _handler)
