"""REST: who I am, my API tokens."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from app.accounts import queries, service
from app.accounts.models import ApiToken
from app.accounts.schemas import Me, NewToken, TokenCreated, TokenOut
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, require

router = APIRouter(prefix="/api/v1", tags=["accounts"])


@router.get("/me", dependencies=[require(Permission.READ)])
def me(user: CurrentUser) -> Me:
    return Me(id=user.user_id, name=user.name, is_admin=user.is_admin)


@router.get("/tokens", response_model=list[TokenOut], dependencies=[require(Permission.READ)])
def list_tokens(session: SessionDep, user: CurrentUser) -> Sequence[ApiToken]:
    return queries.tokens_of(session, user.user_id)


@router.post("/tokens", status_code=201, dependencies=[require(Permission.READ)])
def create_token(session: SessionDep, user: CurrentUser, data: NewToken) -> TokenCreated:
    row, secret = service.create_token(session, user.user_id, data.name, days=data.days)
    return TokenCreated(**TokenOut.model_validate(row).model_dump(), token=secret)


@router.delete("/tokens/{token_id}", status_code=204, dependencies=[require(Permission.READ)])
def revoke_token(session: SessionDep, user: CurrentUser, token_id: int) -> Response:
    service.revoke_token(session, user.user_id, token_id)
    return Response(status_code=204)
