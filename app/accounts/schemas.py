"""What forms and the API take and give."""

from datetime import datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from app.specs.names import Name, visible

SignInName = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_lower=True, min_length=2, max_length=64, pattern=r"^[\w.@+-]+$"
    ),
    AfterValidator(visible),
]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SignIn(Closed):
    name: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
    password: str = Field(min_length=1)
    next: str = "/"


class FirstAccount(Closed):
    name: SignInName
    password: str = Field(min_length=1)
    again: str = Field(min_length=1)

    @model_validator(mode="after")
    def _same(self) -> "FirstAccount":
        if self.password != self.again:
            raise ValueError("The two passwords differ")
        return self


class ChangePassword(Closed):
    current: str = Field(min_length=1)
    password: str = Field(min_length=1)
    again: str = Field(min_length=1)

    @model_validator(mode="after")
    def _same(self) -> "ChangePassword":
        if self.password != self.again:
            raise ValueError("The two new passwords differ")
        return self


class NewToken(Closed):
    name: Name
    days: int | None = Field(default=90, ge=1, le=3650)
    """None: does not expire."""


class Me(BaseModel):
    id: int
    name: str
    is_admin: bool


class TokenOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None


class TokenCreated(TokenOut):
    token: str
    """Shown once; only its SHA-256 is stored."""
