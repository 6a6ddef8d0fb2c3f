"""The frozen, closed pydantic model that every spec derives from."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST = 2**53
"""The largest whole number that JSON keeps exactly everywhere."""


class Spec(BaseModel):
    """Immutable; an unknown field is an error, so that no setting is lost silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Chosen(Spec):
    """What a person sets: numbers are finite and small enough to travel."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _travels(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"must be at most {LARGEST:,}")
        return value
