"""Accounts: first start, sign-in and sessions, API tokens. Never commits."""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from app.accounts import queries
from app.accounts.models import ApiToken, SetupLink, User, UserSession
from app.accounts.schemas import ChangePassword, FirstAccount
from app.clock import now
from app.errors import Conflict, InvalidInput, NotFound
from app.security import passwords, tokens
from app.security.permissions import Principal

SETUP_LINK_LIFE = timedelta(hours=24)
FREE_FAILURES = 3
"""Failed sign-ins without a wait; then 1, 2, 4 … seconds."""
LONGEST_WAIT = timedelta(minutes=5)
"""A throttle, never a lock: whoever owns the account gets in after this at the latest."""
SEEN_EVERY = timedelta(minutes=1)
LOCAL_TOKEN_NAME = "command line on this machine"  # noqa: S105 - a label, not a secret
LOCAL_USER = "command line"
"""Who the local token belongs to. The space keeps people from taking the name."""
LOCK_FIRST_ACCOUNT = 7_310_001
"""Advisory lock: two set-up links used at once make one first account."""


class SetupLinkInvalid(NotFound):
    title = "This set-up link does not work"


class SetupIsDone(Conflict):
    title = "The first account exists already"


@dataclass(frozen=True, slots=True)
class SignInResult:
    """`secret` is the new session's cookie; without it `message` says why not."""

    secret: str | None
    message: str = ""
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    idle: timedelta
    absolute: timedelta


def ensure_setup_link(session: Session) -> str | None:
    """Return the secret of a fresh one-time link while there is no account, else None.

    Older links stop working: each start prints the only valid one.
    """
    if queries.count_people(session):
        return None
    session.execute(delete(SetupLink))
    secret = tokens.new_secret()
    session.add(SetupLink(token_hash=tokens.digest(secret), expires_at=now() + SETUP_LINK_LIFE))
    session.flush()
    return secret


def check_setup_link(session: Session, secret: str, *, lock: bool = False) -> SetupLink:
    link = queries.open_setup_link(session, secret, now(), lock=lock)
    if link is None:
        raise SetupLinkInvalid(
            "It was used, has expired, or a newer one was printed. Restart `stillhouse up` "
            "while no account exists to get a new one."
        )
    return link


def make_first_account(session: Session, secret: str, data: FirstAccount) -> str:
    """Use the link up, make the administrator, and return the secret of a new session."""
    passwords.check_strength(data.password)
    password_hash = passwords.hash_password(data.password)
    session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": LOCK_FIRST_ACCOUNT})
    link = check_setup_link(session, secret, lock=True)
    if queries.count_people(session):
        raise SetupIsDone("Sign in with it.")
    user = User(name=data.name, password_hash=password_hash, is_admin=True)
    link.used_at = now()
    session.add(user)
    session.flush()
    return _open_session(session, user)


def _open_session(session: Session, user: User) -> str:
    secret = tokens.new_secret()
    session.add(
        UserSession(id_hash=tokens.digest(secret), user_id=user.id, csrf_token=tokens.new_secret())
    )
    session.flush()
    return secret


def _wait_after(failures: int) -> timedelta:
    if failures <= FREE_FAILURES:
        return timedelta(0)
    return min(timedelta(seconds=2.0 ** min(failures - FREE_FAILURES - 1, 16)), LONGEST_WAIT)


def sign_in(
    session: Session, name: str, password: str, *, old_secret: str | None = None
) -> SignInResult:
    """Check a password; a success ends the browser's old session and opens a new one.

    Returned, not raised, because a failure's count must be committed.
    """
    user = queries.user_by_name(session, name, lock=True)
    at = now()
    if user is not None and user.locked_until is not None and user.locked_until > at:
        wait = max(1, round((user.locked_until - at).total_seconds()))
        return SignInResult(None, f"Too many failed sign-ins. Try again in {wait} s.", wait)
    if not passwords.verify(user.password_hash if user else None, password) or user is None:
        if user is not None:
            user.failed_sign_ins += 1
            user.locked_until = at + _wait_after(user.failed_sign_ins)
        return SignInResult(None, "Name or password is wrong.")
    user.failed_sign_ins = 0
    user.locked_until = None
    if passwords.needs_rehash(user.password_hash):
        user.password_hash = passwords.hash_password(password)
    if old_secret is not None:
        end_session(session, old_secret)
    return SignInResult(_open_session(session, user))


def end_session(session: Session, secret: str) -> None:
    session.execute(delete(UserSession).where(UserSession.id_hash == tokens.digest(secret)))


def _principal(user: User, csrf_token: str | None) -> Principal:
    by_cookie = csrf_token is not None
    return Principal(
        user_id=user.id,
        name=user.name,
        is_admin=user.is_admin,
        by="cookie" if by_cookie else "token",
        csrf_token=csrf_token or "",
    )


def principal_of_cookie(
    session: Session, secret: str, limits: SessionLimits, at: datetime | None = None
) -> Principal | None:
    """Return who a cookie belongs to; None once idle or absolute life is over."""
    found = queries.live_session(session, secret)
    if found is None:
        return None
    at = at or now()
    if at - found.seen_at > limits.idle or at - found.created_at > limits.absolute:
        return None
    if at - found.seen_at > SEEN_EVERY:
        session.execute(
            update(UserSession).where(UserSession.id_hash == found.id_hash).values(seen_at=at)
        )
    return _principal(found.user, found.csrf_token)


def principal_of_token(session: Session, secret: str) -> Principal | None:
    at = now()
    found = queries.live_token(session, secret, at)
    if found is None:
        return None
    if found.used_at is None or at - found.used_at > SEEN_EVERY:
        session.execute(update(ApiToken).where(ApiToken.id == found.id).values(used_at=at))
    return _principal(found.user, None)


def change_password(
    session: Session, user_id: int, data: ChangePassword, *, keep_secret: str | None
) -> None:
    """Set a new password and end every other session of the account."""
    user = session.get_one(User, user_id)
    if not passwords.verify(user.password_hash, data.current):
        sentence = "This is not the current password."
        raise InvalidInput(sentence, fields={"current": sentence})
    passwords.check_strength(data.password)
    user.password_hash = passwords.hash_password(data.password)
    statement = delete(UserSession).where(UserSession.user_id == user_id)
    if keep_secret is not None:
        statement = statement.where(UserSession.id_hash != tokens.digest(keep_secret))
    session.execute(statement)


def create_token(
    session: Session, user_id: int, name: str, *, days: int | None
) -> tuple[ApiToken, str]:
    """Return the row and the token, which is not stored and cannot be shown again."""
    secret = tokens.new_api_token()
    row = ApiToken(
        user_id=user_id,
        name=name,
        token_hash=tokens.digest(secret),
        expires_at=None if days is None else now() + timedelta(days=days),
    )
    session.add(row)
    session.flush()
    return row, secret


def token_of(session: Session, user_id: int, secret: str) -> ApiToken | None:
    """Return the row of an account's own live token."""
    found = queries.live_token(session, secret, now())
    return found if found is not None and found.user_id == user_id else None


def revoke_token(session: Session, user_id: int, token_id: int) -> None:
    token = session.get(ApiToken, token_id)
    if token is None or token.user_id != user_id:
        raise NotFound("There is no such API token of yours.")
    session.delete(token)


def ensure_local_token(session: Session, path: Path) -> str:
    """Keep a valid token for the command line in `path` (mode 0600) and return it.

    It belongs to the installation's own account, so it works before anybody has one: whoever may
    read the home folder may read the database in it too.
    """
    if path.is_file():
        path.chmod(0o600)
        known = path.read_text().strip()
        if principal_of_token(session, known) is not None:
            return known
    user = _local_user(session)
    session.execute(
        delete(ApiToken).where(ApiToken.user_id == user.id, ApiToken.name == LOCAL_TOKEN_NAME)
    )
    _, secret = create_token(session, user.id, LOCAL_TOKEN_NAME, days=None)
    _write_private(path, secret)
    return secret


def _local_user(session: Session) -> User:
    """Return the installation's own account; without a password nobody can sign in as it."""
    user = queries.user_by_name(session, LOCAL_USER)
    if user is None:
        user = User(name=LOCAL_USER, password_hash="", is_admin=True)
        session.add(user)
        session.flush()
    return user


def _write_private(path: Path, content: str) -> None:
    """Write so that the content is never readable by others, and never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content + "\n")
    fresh.replace(path)
