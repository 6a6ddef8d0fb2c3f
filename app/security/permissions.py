"""What a route asks of who calls it, and who is calling."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Permission(StrEnum):
    """Every route declares one. Roles per project refine READ and WRITE later."""

    PUBLIC = "public"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A signed-in person, by cookie or by API token."""

    user_id: int
    name: str
    is_admin: bool
    by: Literal["cookie", "token"]
    csrf_token: str = ""
    """Bound to the session; empty for API tokens, which no browser sends by itself."""


def allows(principal: Principal | None, permission: Permission) -> bool:
    if permission is Permission.PUBLIC:
        return True
    if principal is None:
        return False
    return principal.is_admin or permission is not Permission.ADMIN
