"""The nonce of the response in hand, and its stamp on every htmx element of our templates.

`hx-csp` strips htmx attributes from elements that do not carry the page's nonce. Template sources
are stamped when they are compiled, so what people or logs write can never carry it.
"""

import re
import secrets
from contextvars import ContextVar

from jinja2.ext import Extension

CSP_NONCE: ContextVar[str] = ContextVar("csp_nonce", default="")
_JINJA = r"\{\{.*?\}\}|\{%.*?%\}"
_VALUE = rf"\"(?:{_JINJA}|[^\"])*+\"|'(?:{_JINJA}|[^'])*+'"
TAG = re.compile(
    rf"<(?P<name>[a-zA-Z][\w-]*)(?P<attributes>(?:{_JINJA}|{_VALUE}|[^>\"'])*+)>", re.DOTALL
)
_HX = re.compile(r"(?:^|\s)hx-(?!nonce)", re.IGNORECASE)
QUOTED = re.compile(rf"{_JINJA}|{_VALUE}", re.DOTALL)


def new_nonce() -> str:
    """Return 128 random bits and make them the nonce of this request."""
    nonce = secrets.token_urlsafe(16)
    CSP_NONCE.set(nonce)
    return nonce


def stamp(source: str) -> str:
    """Add `hx-nonce` to every tag of a template's source that has an htmx attribute."""

    def _stamp(match: re.Match[str]) -> str:
        if not _HX.search(QUOTED.sub('""', match["attributes"])):
            return match[0]
        return f'<{match["name"]} hx-nonce="{{{{ csp_nonce() }}}}"{match["attributes"]}>'

    return TAG.sub(_stamp, source)


class NonceExtension(Extension):
    """Stamps sources before Jinja compiles them."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        del name, filename
        return stamp(source)
