"""Named errors that a person sees: the thing, the place, the mend, and an HTTP status."""

from typing import ClassVar


class AppError(Exception):
    """Base. `status` is the HTTP status; `title` heads the error page; str() is the sentence."""

    status: ClassVar[int] = 400
    title: ClassVar[str] = "The request cannot be carried out"

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}
        """Form field → sentence, for a 422."""


class InvalidInput(AppError):
    status = 422
    title = "Something in the form needs a change"


class NotFound(AppError):
    status = 404
    title = "Not here"


class Conflict(AppError):
    status = 409
    title = "The state has changed"


class NotSignedIn(AppError):
    status = 401
    title = "Sign in first"


class Forbidden(AppError):
    status = 403
    title = "Not allowed"


class TooManyAttempts(AppError):
    status = 429
    title = "Too many attempts"


class PayloadTooLarge(AppError):
    status = 413
    title = "Too large"


class Unavailable(AppError):
    status = 503
    title = "Not available now"
