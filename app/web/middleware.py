"""Around every request: its id, access log, nonce, security headers, and what is refused early."""

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AppError, Forbidden, PayloadTooLarge
from app.security import csrf
from app.settings import Settings
from app.web.nonce import new_nonce

ShowError = Callable[[Request, Exception], Response]
MAX_RANGE = 256
"""Characters of a Range header; longer ones only serve to burn CPU (CVE-2025-62727)."""
_CLIENT_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
log = structlog.get_logger("access")


class UnsupportedBody(AppError):
    status = 415
    title = "This body is not accepted"


class BadRequest(AppError):
    status = 400
    title = "The request is not well-formed"


def content_security_policy(nonce: str) -> str:
    """Scripts run by nonce only, nothing inline, no eval; only htmx may write markup."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'nonce-{nonce}'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types htmx",
        )
    )


def security_headers(nonce: str, *, tls: bool) -> dict[str, str]:
    headers = {
        "Content-Security-Policy": content_security_policy(nonce),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }
    if tls:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return headers


def host_name(host: str) -> str:
    """Return the Host header without its port, lower case; IPv6 keeps its brackets."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()


def _early_refusal(scope: Scope, settings: Settings) -> AppError | None:
    """Return why a request is refused before anything of it is read."""
    headers = Headers(scope=scope)
    checks = (_host_refusal, _size_refusal)
    refusals = (check(headers, settings) for check in checks)
    found = next((refused for refused in refusals if refused is not None), None)
    if found is not None:
        return found
    reason = csrf.refusal(scope["method"], headers)
    if reason is not None:
        return Forbidden(reason)
    reason = csrf.content_type_refusal(scope["method"], headers)
    return UnsupportedBody(reason) if reason is not None else None


def _host_refusal(headers: Headers, settings: Settings) -> AppError | None:
    """DNS rebinding: only names of this installation are answered."""
    host = host_name(headers.get("host", ""))
    if host in settings.allowed_hosts or "*" in settings.allowed_hosts:
        return None
    return BadRequest(
        "This host name is not one of the installation's; "
        "add it to STILLHOUSE_ALLOWED_HOSTS if it is."
    )


def _size_refusal(headers: Headers, settings: Settings) -> AppError | None:
    if len(headers.get("range", "")) > MAX_RANGE:
        return BadRequest(f"The Range header is longer than {MAX_RANGE} characters.")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return BadRequest("Content-Length is not a number.")
    limit = body_limit(headers, settings)
    if int(length) > limit:
        return PayloadTooLarge(f"The body has {int(length):,} bytes; at most {limit:,} are read.")
    return None


def body_limit(headers: Headers, settings: Settings) -> int:
    """Return how many bytes are read: resumable uploads stream, everything else is small."""
    if headers.get("content-type", "") == "application/offset+octet-stream":
        return settings.max_upload_bytes
    return settings.max_body_bytes


def _limited(receive: Receive, limit: int) -> Receive:
    """Count bytes as they come: chunked bodies declare no length."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise PayloadTooLarge(f"The body is longer than {limit:,} bytes.")
        return message

    return limited


class RequestEdge:
    """The outermost layer; no exception of ours leaves it, and no answer lacks its headers."""

    def __init__(self, app: ASGIApp, settings: Settings, show_error: ShowError) -> None:
        self.app = app
        self.settings = settings
        self.show_error = show_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        request_id = self._request_id(request)
        request.state.request_id = request_id
        nonce = new_nonce()
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in security_headers(nonce, tls=self.settings.behind_tls).items():
                    headers[name] = value
                headers["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._answer(request, receive, send_with_headers, lambda: status)
            finally:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round(1000 * (time.perf_counter() - started), 1),
                )

    @staticmethod
    def _request_id(request: Request) -> str:
        given = request.headers.get("x-request-id", "")
        return given if _CLIENT_ID.fullmatch(given) else secrets.token_hex(8)

    async def _answer(
        self, request: Request, receive: Receive, send: Send, status: Callable[[], int]
    ) -> None:
        refused = _early_refusal(request.scope, self.settings)
        if refused is not None:
            await self.show_error(request, refused)(request.scope, receive, send)
            return
        limit = body_limit(request.headers, self.settings)
        try:
            await self.app(request.scope, _limited(receive, limit), send)
        except Exception as error:
            if not isinstance(error, AppError):
                log.exception("unhandled")
            if status():
                raise  # half an answer is out: the server closes the connection
            await self.show_error(request, error)(request.scope, receive, send)
