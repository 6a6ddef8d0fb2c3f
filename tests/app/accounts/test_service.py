"""First start, sign-in, sessions and tokens against a real database."""

import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts import service
from app.accounts.models import ApiToken, SetupLink, User, UserSession
from app.accounts.schemas import ChangePassword, FirstAccount
from app.clock import now
from app.errors import InvalidInput, NotFound
from app.security.tokens import digest

LIMITS = service.SessionLimits(timedelta(hours=2), timedelta(hours=12))
PASSWORD = "correct horse battery"


def test_first_start_makes_one_account_and_the_link_works_once(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    older = service.ensure_setup_link(session)
    assert older is not None
    secret = first_account(session)
    principal = service.principal_of_cookie(session, secret, LIMITS)
    assert principal is not None
    assert principal.is_admin
    assert service.ensure_setup_link(session) is None
    data = FirstAccount(name="eve", password=PASSWORD, again=PASSWORD)
    with pytest.raises(service.SetupLinkInvalid):
        service.make_first_account(session, older, data)
    assert session.scalars(select(User.name)).all() == ["ada"]


def test_link_expires_and_is_stored_hashed(session: Session) -> None:
    secret = service.ensure_setup_link(session)
    assert secret is not None
    assert session.scalars(select(SetupLink.token_hash)).all() == [digest(secret)]
    session.execute(update(SetupLink).values(expires_at=now() - timedelta(seconds=1)))
    with pytest.raises(service.SetupLinkInvalid, match="expired"):
        service.check_setup_link(session, secret)


def test_short_password_leaves_the_link_usable(session: Session) -> None:
    secret = service.ensure_setup_link(session)
    assert secret is not None
    with pytest.raises(InvalidInput):
        service.make_first_account(
            session, secret, FirstAccount(name="ada", password="short", again="short")
        )
    assert service.check_setup_link(session, secret) is not None


def test_failed_sign_ins_wait_longer_but_never_for_ever(
    session: Session, first_account: Callable[[Session], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_account(session)
    monkeypatch.setattr(service.passwords, "verify", lambda _hash, given: given == PASSWORD)
    start = now()
    clock = [start]
    monkeypatch.setattr(service, "now", lambda: clock[0])
    user = session.scalars(select(User)).one()
    waits = []
    for _ in range(14):
        assert service.sign_in(session, "ada", "wrong").message == "Name or password is wrong."
        wait = (user.locked_until or clock[0]) - clock[0]
        waits.append(wait.total_seconds())
        clock[0] += wait
    assert waits[:7] == [0, 0, 0, 1, 2, 4, 8]
    assert max(waits) == waits[-1] == 300
    clock[0] -= timedelta(seconds=1)
    early = service.sign_in(session, "ada", PASSWORD)
    assert early.secret is None
    assert early.retry_after == 1
    clock[0] += timedelta(seconds=2)
    assert service.sign_in(session, "ada", PASSWORD).secret is not None
    assert user.failed_sign_ins == 0


def test_sign_in_rotates_the_session(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    old = first_account(session)
    fresh = service.sign_in(session, "ada", PASSWORD, old_secret=old).secret
    assert fresh is not None
    assert fresh != old
    assert service.principal_of_cookie(session, old, LIMITS) is None
    assert session.scalars(select(UserSession.id_hash)).all() == [digest(fresh)]


def test_unknown_name_gets_the_same_words(session: Session) -> None:
    assert service.sign_in(session, "nobody", "x").message == "Name or password is wrong."


def test_session_ends_idle_and_absolute(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    secret = first_account(session)
    start = now()

    def at(**after: float) -> bool:
        when = start + timedelta(**after)
        return service.principal_of_cookie(session, secret, LIMITS, when) is not None

    assert at(minutes=119)
    session.expire_all()
    assert at(minutes=238), "use keeps it alive"
    session.expire_all()
    assert not at(minutes=360), "idle for two hours"
    session.execute(update(UserSession).values(seen_at=start + timedelta(hours=12)))
    session.expire_all()
    assert not at(hours=12, seconds=5), "twelve hours after sign-in"


def test_new_password_ends_the_other_sessions(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    mine = first_account(session)
    other = service.sign_in(session, "ada", PASSWORD).secret
    assert other is not None
    user = session.scalars(select(User)).one()
    new = "another long password"
    wrong = ChangePassword(current="wrong", password=new, again=new)
    with pytest.raises(InvalidInput) as caught:
        service.change_password(session, user.id, wrong, keep_secret=mine)
    assert "current" in caught.value.fields
    right = ChangePassword(current=PASSWORD, password=new, again=new)
    service.change_password(session, user.id, right, keep_secret=mine)
    assert service.principal_of_cookie(session, mine, LIMITS) is not None
    assert service.principal_of_cookie(session, other, LIMITS) is None


def test_token_is_stored_hashed_and_can_be_revoked(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    first_account(session)
    user = session.scalars(select(User)).one()
    row, secret = service.create_token(session, user.id, "ci", days=1)
    assert secret not in str(session.execute(select(ApiToken)).all())
    principal = service.principal_of_token(session, secret)
    assert principal is not None
    assert principal.by == "token"
    with pytest.raises(NotFound):
        service.revoke_token(session, user.id + 1, row.id)
    service.revoke_token(session, user.id, row.id)
    session.flush()
    assert service.principal_of_token(session, secret) is None


def test_expired_token_is_refused(
    session: Session, first_account: Callable[[Session], str]
) -> None:
    first_account(session)
    user = session.scalars(select(User)).one()
    row, secret = service.create_token(session, user.id, "ci", days=1)
    row.expires_at = now() - timedelta(seconds=1)
    session.flush()
    assert service.principal_of_token(session, secret) is None


def test_local_token_is_private_kept_and_replaced(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    secret = service.ensure_local_token(session, path)
    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    principal = service.principal_of_token(session, secret)
    assert principal is not None
    assert principal.is_admin
    path.chmod(0o644)
    assert service.ensure_local_token(session, path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("damaged")
    assert service.ensure_local_token(session, path) == path.read_text().strip() != secret
    assert service.principal_of_token(session, secret) is None, "one local token at a time"


def test_the_installation_itself_is_no_first_account(session: Session, tmp_path: Path) -> None:
    service.ensure_local_token(session, tmp_path / "token")
    assert service.ensure_setup_link(session) is not None
    assert service.sign_in(session, service.LOCAL_USER, "").secret is None
    with pytest.raises(ValidationError):
        FirstAccount(name=service.LOCAL_USER, password=PASSWORD, again=PASSWORD)
