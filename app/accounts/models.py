"""People, their sessions, API tokens, and the one-time link of the first start."""

from datetime import datetime

from sqlalchemy import ForeignKey, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.base import Base, HasCreated, HasId


class User(HasId, HasCreated, Base):
    __tablename__ = "users"

    name: Mapped[str] = mapped_column(unique=True)
    """Sign-in name, lower case."""
    password_hash: Mapped[str]
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    failed_sign_ins: Mapped[int] = mapped_column(server_default=text("0"))
    locked_until: Mapped[datetime | None]


class UserSession(Base):
    """A signed-in browser; the cookie holds the id, the row its SHA-256."""

    __tablename__ = "user_sessions"

    id_hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    csrf_token: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    user: Mapped[User] = relationship(lazy="raise")


class ApiToken(HasId, HasCreated, Base):
    """A bearer token; only its SHA-256 is stored."""

    __tablename__ = "api_tokens"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    user: Mapped[User] = relationship(lazy="raise")


class SetupLink(HasId, HasCreated, Base):
    """Makes the first account; printed once, valid once."""

    __tablename__ = "setup_links"

    token_hash: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
