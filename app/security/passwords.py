"""Passwords as argon2id hashes (OWASP: m = 46 MiB, t = 1, p = 1), at most two at once."""

from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from app.errors import InvalidInput

MIN_LENGTH = 12
MAX_LENGTH = 256
_HASHER = PasswordHasher(time_cost=1, memory_cost=47104, parallelism=1)
# A hash takes 46 MiB: a burst of sign-ins must not take the memory of the machine.
_AT_ONCE = BoundedSemaphore(2)
# Verified when the name is unknown, so that the answer takes as long as for a known one.
_NOBODY = (
    "$argon2id$v=19$m=47104,t=1,p=1$/mY9ucXOKHa+7YOi+SQumA"
    "$AzYxkBX9ykKVFaBdQLaLtww0IByrYCIyjap32U/zC1E"
)


def check_strength(password: str, field: str = "password") -> None:
    """Raise when the length is out of bounds (NIST 800-63B: length, not character classes)."""
    if len(password) < MIN_LENGTH:
        text = f"Use at least {MIN_LENGTH} characters; this has {len(password)}."
        raise InvalidInput(text, fields={field: text})
    if len(password) > MAX_LENGTH:
        text = f"Use at most {MAX_LENGTH} characters; this has {len(password)}."
        raise InvalidInput(text, fields={field: text})


def hash_password(password: str) -> str:
    with _AT_ONCE:
        return _HASHER.hash(password)


def verify(password_hash: str | None, password: str) -> bool:
    """Return whether `password` belongs to the hash; None stands for an unknown name."""
    if len(password) > MAX_LENGTH:
        return False
    with _AT_ONCE:
        try:
            return _HASHER.verify(password_hash or _NOBODY, password) and password_hash is not None
        except (VerifyMismatchError, InvalidHashError):
            return False


def needs_rehash(password_hash: str) -> bool:
    return _HASHER.check_needs_rehash(password_hash)
