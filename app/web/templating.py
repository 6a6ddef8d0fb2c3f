"""Jinja environment, and `render`: a page, or one of its blocks for an htmx partial request."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2_fragments import render_block
from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.metrics import formatting
from app.metrics.registry import METRICS
from app.web import filters, navigation
from app.web.nonce import CSP_NONCE, NonceExtension

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "templates"
STATIC = ROOT / "static"
KIT = "_ui"
CSRF_TOKEN: ContextVar[str] = ContextVar("csrf_token", default="")
"""The token of the page in hand; macros see no template context."""


@lru_cache(maxsize=512)
def _version(path: Path, changed: int) -> str:
    del changed  # part of the key only: a changed file gets a new version
    return sha256(path.read_bytes()).hexdigest()[:10]


def static_url(name: str) -> str:
    """Return the address of a file in static/, versioned by its content."""
    path = STATIC / name
    if not path.is_file():
        return f"/static/{name}"
    return f"/static/{name}?v={_version(path, path.stat().st_mtime_ns)}"


def _install_kit(environment: Environment) -> None:
    """Make the macros of every file in templates/_ui available as `ui.NAME`.

    The namespace is a global before it is filled: a macro keeps the globals of its file's load.
    """
    kit = environment.globals["ui"] = SimpleNamespace()
    for path in sorted((TEMPLATES / KIT).glob("*.html")):
        module = environment.get_template(f"{KIT}/{path.name}").module
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            if hasattr(kit, name):
                raise ValueError(f"two macros are called ui.{name}; the second is in {path.name}")
            setattr(kit, name, value)


def make_environment() -> Environment:
    """Build the environment: strict, escaped, with filters, `static`, `csp_nonce` and `ui`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        auto_reload=False,  # new templates beside old code would fail while an upgrade is copied
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[NonceExtension],
    )
    environment.filters.update(_formatting_filters())
    environment.filters.update(filters.FILTERS)
    environment.globals.update(
        static=static_url,
        csp_nonce=CSP_NONCE.get,
        csrf_token=CSRF_TOKEN.get,
        METRICS=METRICS,
        with_query=filters.with_query,
        href=navigation.href,
    )
    _install_kit(environment)
    return environment


def _formatting_filters() -> dict[str, Callable[..., str]]:
    return {
        "number": formatting.number,
        "signed": formatting.signed,
        "metric_value": lambda value, name: formatting.metric_value(name, value),
        "metric_delta": lambda value, name: formatting.metric_delta(name, value),
        "duration": formatting.duration,
        "size": formatting.size,
        "tokens": formatting.tokens,
        "parameters": formatting.parameters,
        "compression": formatting.compression,
    }


@lru_cache(maxsize=1)
def environment() -> Environment:
    return make_environment()


@dataclass(frozen=True, slots=True)
class Shell:
    """What base.html needs beside the page's own context."""

    user_name: str | None
    csrf_token: str
    items: tuple[navigation.NavLink, ...]
    project_items: tuple[navigation.NavLink, ...]


def _shell(request: Request, project: Any) -> Shell:
    principal = getattr(request.state, "principal", None)
    signed_in = principal is not None
    return Shell(
        user_name=principal.name if principal else None,
        csrf_token=principal.csrf_token if principal else "",
        items=navigation.installation(request) if signed_in else (),
        project_items=navigation.project(request, project) if signed_in and project else (),
    )


def is_partial(request: Request) -> bool:
    """Return whether htmx asks for a part of the page (a targeted swap)."""
    return request.headers.get("HX-Request-Type") == "partial"


def is_htmx(request: Request) -> bool:
    return request.headers.get("HX-Request") == "true"


def render(
    request: Request,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    block: str | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """Render `template`; only its `block` where htmx asks for a partial and one is named.

    Every page template extends base.html, which reads `project` (or None), `crumbs` (pairs of
    label and address, the page itself last with None), `nav` (key of the current entry) and
    `page_keys` (pairs of a key and what it does on this page: an element with `data-key`).
    """
    values = {"project": None, "crumbs": (), "nav": None, "page_keys": (), **(context or {})}
    shell = _shell(request, values["project"])
    values |= {"request": request, "shell": shell}
    CSRF_TOKEN.set(shell.csrf_token)
    if block is not None and is_partial(request):
        text = render_block(environment(), template, block, values)
    else:
        text = environment().get_template(template).render(values)
    vary = {"Vary": "HX-Request, HX-Request-Type", "Cache-Control": "no-store"}
    return HTMLResponse(text, status_code=status, headers={**vary, **(headers or {})})
