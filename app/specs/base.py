"""The frozen, closed pydantic model that every spec derives from."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Immutable; an unknown field is an error, so that no setting is lost silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")
