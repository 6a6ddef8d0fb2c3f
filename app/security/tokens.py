"""Random secrets: shown once, stored as SHA-256 (they have full entropy, so no slow hash)."""

import hmac
import secrets
from hashlib import sha256

PREFIX = "sh_"
BYTES = 32


def new_secret() -> str:
    """Return 256 random bits as URL-safe text."""
    return secrets.token_urlsafe(BYTES)


def new_api_token() -> str:
    """Return an API token; the prefix lets scanners recognise a leaked one."""
    return PREFIX + new_secret()


def digest(secret: str) -> str:
    """Return the SHA-256 hex digest that is stored instead of the secret."""
    return sha256(secret.encode()).hexdigest()


def same(a: str, b: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a.encode(), b.encode())
