"""Read people, sessions, tokens and set-up links."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, joinedload

from app.accounts.models import ApiToken, SetupLink, User, UserSession
from app.security.tokens import digest


def count_people(session: Session) -> int:
    """Return how many can sign in: the installation's own account has no password."""
    return session.scalar(select(func.count(User.id)).where(User.password_hash != "")) or 0


def user_by_name(session: Session, name: str, *, lock: bool = False) -> User | None:
    statement = select(User).where(User.name == name)
    return session.scalar(statement.with_for_update() if lock else statement)


def live_session(session: Session, secret: str) -> UserSession | None:
    """Return the session of a cookie with its user, whatever its age."""
    return session.scalar(
        select(UserSession)
        .where(UserSession.id_hash == digest(secret))
        .options(joinedload(UserSession.user))
    )


def live_token(session: Session, secret: str, at: datetime) -> ApiToken | None:
    """Return an unexpired API token with its user."""
    return session.scalar(
        select(ApiToken)
        .where(
            ApiToken.token_hash == digest(secret),
            or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > at),
        )
        .options(joinedload(ApiToken.user))
    )


def tokens_of(session: Session, user_id: int) -> Sequence[ApiToken]:
    return session.scalars(
        select(ApiToken).where(ApiToken.user_id == user_id).order_by(ApiToken.id.desc())
    ).all()


def open_setup_link(
    session: Session, secret: str, at: datetime, *, lock: bool = False
) -> SetupLink | None:
    statement = select(SetupLink).where(
        SetupLink.token_hash == digest(secret),
        SetupLink.used_at.is_(None),
        SetupLink.expires_at > at,
    )
    return session.scalar(statement.with_for_update() if lock else statement)
