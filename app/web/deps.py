"""Dependencies of routes: the session, who is calling, what they may do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from fastapi.params import Depends as DependsParam
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.db.hooks import Signal, take_signals
from app.db.session import make_engine, make_session_factory
from app.errors import Forbidden, NotSignedIn
from app.events.follow import Follower, Read, StreamEvent
from app.events.queries import events_after
from app.security import csrf
from app.security.permissions import Permission, Principal, allows
from app.security.tokens import same
from app.settings import Settings


class Sender(Protocol):
    """The broker as the edge sees it."""

    def send(self, signals: set[Signal]) -> None: ...
    def ping(self) -> bool: ...


class Authenticate(Protocol):
    """Find who a cookie or a bearer token belongs to; given by the accounts domain."""

    def __call__(
        self, session: Session, *, cookie: str | None, bearer: str | None
    ) -> Principal | None: ...


@dataclass(slots=True)
class Services:
    """What one web process holds; lies in `app.state.services`."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    authenticate: Authenticate
    broker: Sender | None
    follower: Follower | None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        settings: Settings,
        authenticate: Authenticate,
        *,
        broker: Sender | None = None,
        engine: Engine | None = None,
    ) -> "Services":
        engine = engine or make_engine(settings.require_database_url(), pool_size=10)
        sessions = make_session_factory(engine)
        follower = (
            Follower(event_reader(sessions), settings.redis_url) if settings.redis_url else None
        )
        return cls(settings, engine, sessions, authenticate, broker, follower)


def event_reader(factory: sessionmaker[Session]) -> Read:
    """Return how a follower reads: one short session a read, none while it waits."""

    def read(streams: Sequence[str], after_id: int) -> list[StreamEvent]:
        with factory() as session:
            rows = events_after(session, streams, after_id)
            return [StreamEvent(r.id, r.kind, r.job_id, r.payload) for r in rows]

    return read


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


def _session(request: Request) -> Iterator[Session]:
    """One transaction a request, committed before the response; signals leave after it."""
    parts = services(request)
    with parts.sessions() as session:
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
    send_signals(request, session)


def commit_now(request: Request, session: Session) -> None:
    """End the transaction in the middle of a request that then waits long (a body of hours).

    The connection goes back to the pool; the session may be used again afterwards.
    """
    session.commit()
    send_signals(request, session)


def send_signals(request: Request, session: Session) -> None:
    broker, signals = services(request).broker, take_signals(session)
    if signals and broker is not None:
        broker.send(signals)


# scope="function" ends the dependency before the response is sent: a failed commit is an error.
get_session = Depends(_session, scope="function")
SessionDep = Annotated[Session, get_session]


def _settings(request: Request) -> Settings:
    return services(request).settings


SettingsDep = Annotated[Settings, Depends(_settings)]


def cookie_name(settings: Settings) -> str:
    """Return the cookie's name: `__Host-` wherever the browser sends it over TLS."""
    return "__Host-stillhouse" if settings.behind_tls else "stillhouse"


def bearer_of(request: Request) -> str | None:
    if not csrf.has_bearer(request.headers):
        return None
    return request.headers["authorization"].partition(" ")[2].strip()


def current_principal(request: Request, session: SessionDep) -> Principal | None:
    """Return who calls. A bearer token replaces the cookie, so it never rides on one."""
    parts = services(request)
    bearer = bearer_of(request)
    cookie = None if bearer else request.cookies.get(cookie_name(parts.settings))
    found = parts.authenticate(session, cookie=cookie, bearer=bearer) if cookie or bearer else None
    request.state.principal = found
    return found


def principal_for_page(request: Request) -> Principal | None:
    """Return who calls where no route asked: an error page still shows their menu."""
    parts = services(request)
    cookie = request.cookies.get(cookie_name(parts.settings))
    if cookie is None:
        return None
    with parts.sessions() as session:
        return parts.authenticate(session, cookie=cookie, bearer=None)


def still_signed_in(request: Request) -> Callable[[], bool]:
    """Return a check for long answers: is who asked for it still let in? Opens its own session."""
    parts = services(request)
    bearer, cookie = bearer_of(request), request.cookies.get(cookie_name(parts.settings))

    def check() -> bool:
        with parts.sessions() as session:
            found = parts.authenticate(session, cookie=None if bearer else cookie, bearer=bearer)
        return found is not None

    return check


async def _csrf_token(request: Request) -> str:
    sent = request.headers.get(csrf.HEADER)
    if sent is not None:
        return sent
    kind = request.headers.get("content-type", "")
    if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        value = (await request.form()).get(csrf.FIELD)
        return value if isinstance(value, str) else ""
    return ""


@dataclass(frozen=True, slots=True)
class Require:
    """A route's permission; on unsafe methods with a cookie also the session's CSRF token."""

    permission: Permission

    async def __call__(
        self,
        request: Request,
        principal: Annotated[Principal | None, Depends(current_principal)],
    ) -> Principal | None:
        if not allows(principal, self.permission):
            if principal is None:
                raise NotSignedIn(SIGN_IN)
            raise Forbidden("This needs an administrator.")
        if (
            principal is not None
            and principal.by == "cookie"
            and request.method not in csrf.SAFE_METHODS
            and not same(await _csrf_token(request), principal.csrf_token)
        ):
            raise Forbidden("The form is from an older sign-in. Reload the page and send it again.")
        return principal


def require(permission: Permission) -> DependsParam:
    """Declare a route's permission: `APIRouter(dependencies=[require(Permission.READ)])`."""
    found: DependsParam = Depends(Require(permission))
    return found


SIGN_IN = (
    "This needs a signed-in account, or a program's token: Authorization: Bearer and the token."
)


@dataclass(frozen=True, slots=True)
class Open:
    """A public route that reads nothing about who calls (health)."""

    permission: Permission = Permission.PUBLIC

    def __call__(self) -> None:
        return None


def open_to_all() -> DependsParam:
    found: DependsParam = Depends(Open())
    return found


def _signed_in(
    principal: Annotated[Principal | None, Depends(current_principal)],
) -> Principal:
    if principal is None:
        raise NotSignedIn(SIGN_IN)
    return principal


CurrentUser = Annotated[Principal, Depends(_signed_in)]
MaybeUser = Annotated[Principal | None, Depends(current_principal)]
