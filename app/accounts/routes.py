"""Pages: first account, sign-in and sign-out, the account page."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from app.accounts import queries, service
from app.accounts.schemas import ChangePassword, FirstAccount, NewToken, SignIn
from app.errors import AppError, InvalidInput
from app.security.permissions import Permission
from app.settings import Settings
from app.web.deps import (
    CurrentUser,
    MaybeUser,
    SessionDep,
    SettingsDep,
    cookie_name,
    require,
)
from app.web.forms import Form, empty_form, form_of
from app.web.templating import render

router = APIRouter(include_in_schema=False)
HOME = "/"
ACCOUNT = "/account"
FRESH_TOKEN = "stillhouse-new-token"  # noqa: S105 - the cookie's name
"""Carries a new API token over the redirect to the page that shows it once."""
FRESH_SECONDS = 60


def safe_next(address: str) -> str:
    """Return a path of this site; anything that could lead elsewhere becomes `/`."""
    parts = urlsplit(address)
    ok = address.startswith("/") and not address.startswith(("//", "/\\")) and "\\" not in address
    ok = ok and not parts.scheme and not parts.netloc and address.isprintable()
    return address if ok else HOME


def with_cookie(response: Response, settings: Settings, secret: str) -> Response:
    response.set_cookie(
        cookie_name(settings),
        secret,
        max_age=int(settings.session_absolute_hours * 3600),
        path="/",
        secure=settings.behind_tls,
        httponly=True,
        samesite="lax",
    )
    return response


def _cookie(request: Request, settings: Settings) -> str | None:
    return request.cookies.get(cookie_name(settings))


@router.get("/sign-in", name="accounts.sign_in", dependencies=[require(Permission.PUBLIC)])
def sign_in_page(
    request: Request,
    session: SessionDep,
    user: MaybeUser,
    next: str = HOME,  # noqa: A002 - the query's name
) -> Response:
    if user is not None:
        return RedirectResponse(safe_next(next), status_code=303)
    first = queries.count_people(session) == 0
    form = empty_form(next=safe_next(next))
    return render(request, "accounts/sign_in.html", {"form": form, "first": first})


@router.post("/sign-in", dependencies=[require(Permission.PUBLIC)])
def sign_in(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    form: Annotated[Form[SignIn], Depends(form_of(SignIn))],
) -> Response:
    status, headers = 422, {}
    if form.data is not None:
        old = _cookie(request, settings)
        result = service.sign_in(session, form.data.name, form.data.password, old_secret=old)
        if result.secret is not None:
            response = RedirectResponse(safe_next(form.data.next), status_code=303)
            return with_cookie(response, settings, result.secret)
        form.message = result.message
        if result.retry_after:
            status, headers = 429, {"Retry-After": str(result.retry_after)}
    context = {"form": form, "first": False}
    return render(request, "accounts/sign_in.html", context, status=status, headers=headers)


@router.post("/sign-out", dependencies=[require(Permission.READ)])
def sign_out(request: Request, session: SessionDep, settings: SettingsDep) -> Response:
    secret = _cookie(request, settings)
    if secret is not None:
        service.end_session(session, secret)
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(
        cookie_name(settings), path="/", secure=settings.behind_tls, httponly=True, samesite="lax"
    )
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


@router.get("/setup/{secret}", name="accounts.setup", dependencies=[require(Permission.PUBLIC)])
def setup_page(request: Request, session: SessionDep, secret: str) -> Response:
    service.check_setup_link(session, secret)
    return render(request, "accounts/setup.html", {"form": empty_form(), "secret": secret})


@router.post("/setup/{secret}", dependencies=[require(Permission.PUBLIC)])
def setup(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    secret: str,
    form: Annotated[Form[FirstAccount], Depends(form_of(FirstAccount))],
) -> Response:
    if form.data is not None:
        try:
            cookie = service.make_first_account(session, secret, form.data)
        except InvalidInput as error:
            form.refuse(error)
        else:
            return with_cookie(RedirectResponse(HOME, status_code=303), settings, cookie)
    service.check_setup_link(session, secret)
    context = {"form": form, "secret": secret}
    return render(request, "accounts/setup.html", context, status=422)


def _account_page(
    request: Request, session: SessionDep, user: CurrentUser, **context: object
) -> Response:
    status = context.pop("status", 200)
    values = {
        "crumbs": (("Account", None),),
        "password_form": empty_form(),
        "token_form": empty_form(days=90),
        "tokens": queries.tokens_of(session, user.user_id),
        "new_token": None,
        **context,
    }
    return render(request, "accounts/account.html", values, status=int(str(status)))


@router.get(ACCOUNT, name="accounts.account", dependencies=[require(Permission.READ)])
def account(
    request: Request, session: SessionDep, settings: SettingsDep, user: CurrentUser
) -> Response:
    """Show the account, and a token that was just made: its cookie goes with this answer."""
    fresh = request.cookies.get(FRESH_TOKEN, "")
    made = service.token_of(session, user.user_id, fresh) if fresh else None
    page = _account_page(request, session, user, new_token=(made, fresh) if made else None)
    if fresh:
        page.delete_cookie(
            FRESH_TOKEN, path=ACCOUNT, secure=settings.behind_tls, httponly=True, samesite="lax"
        )
    return page


@router.post("/account/password", dependencies=[require(Permission.READ)])
def change_password(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    form: Annotated[Form[ChangePassword], Depends(form_of(ChangePassword))],
) -> Response:
    if form.data is not None:
        try:
            keep = _cookie(request, settings)
            service.change_password(session, user.user_id, form.data, keep_secret=keep)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(f"{ACCOUNT}?changed=password", status_code=303)
    return _account_page(request, session, user, password_form=form, status=422)


@router.post("/account/tokens", dependencies=[require(Permission.READ)])
def create_token(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    form: Annotated[Form[NewToken], Depends(form_of(NewToken))],
) -> Response:
    """Make a token and lead to the page: to reload what shows it makes no second one.

    The browser that will show it carries it there; nothing here keeps it.
    """
    if form.data is None:
        return _account_page(request, session, user, token_form=form, status=422)
    _, token = service.create_token(session, user.user_id, form.data.name, days=form.data.days)
    response = RedirectResponse(ACCOUNT, status_code=303)
    response.set_cookie(
        FRESH_TOKEN,
        token,
        max_age=FRESH_SECONDS,
        path=ACCOUNT,
        secure=settings.behind_tls,
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/account/tokens/{token_id}/revoke", dependencies=[require(Permission.READ)])
def revoke_token(session: SessionDep, user: CurrentUser, token_id: int) -> Response:
    service.revoke_token(session, user.user_id, token_id)
    return RedirectResponse(f"{ACCOUNT}?changed=token", status_code=303)
