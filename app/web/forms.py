"""HTML forms checked by pydantic: field errors in words, typed values kept, 422 on refusal."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request

from app.errors import AppError
from app.security.csrf import FIELD as CSRF_FIELD

Model = TypeVar("Model", bound=BaseModel)

WHOLE = "form"
"""Key of an error that belongs to no field."""
SENTENCES: dict[str, str] = {
    "missing": "Is needed.",
    "string_too_short": "Use at least {min_length} characters.",
    "string_too_long": "Use at most {max_length} characters.",
    "int_parsing": "Must be a whole number.",
    "int_from_float": "Must be a whole number.",
    "float_parsing": "Must be a number.",
    "bool_parsing": "Must be yes or no.",
    "string_pattern_mismatch": "Use letters, digits and . @ + - _ only.",
    "finite_number": "Must be a finite number.",
    "greater_than": "Must be above {gt}.",
    "greater_than_equal": "Must be at least {ge}.",
    "less_than": "Must be below {lt}.",
    "less_than_equal": "Must be at most {le}.",
    "literal_error": "Must be one of {expected}.",
    "enum": "Must be one of {expected}.",
    "extra_forbidden": "Is not a field of this form.",
    "json_invalid": "The body is not JSON: {error}.",
}


def sentence(error: Mapping[str, Any]) -> str:
    """Return one plain sentence for a pydantic error."""
    kind = str(error.get("type", ""))
    if kind == "string_too_short" and error.get("ctx", {}).get("min_length") == 1:
        return SENTENCES["missing"]
    template = SENTENCES.get(kind)
    if template is not None:
        limits = error.get("ctx", {}).items()
        return template.format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in limits})
    text = str(error.get("msg", "Is not valid.")).removeprefix("Value error, ")
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def field_errors(errors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return dotted field name → sentence; the first error of a field wins."""
    found: dict[str, str] = {}
    for error in errors:
        place = [str(part) for part in error.get("loc", ())]
        if place and place[0] in ("body", "query", "path", "header"):
            place = place[1:]
        if error.get("type") == "json_invalid":
            place = []  # where in the text it broke names no field
        found.setdefault(".".join(place) or WHOLE, sentence(error))
    return found


@dataclass(slots=True)
class Form(Generic[Model]):
    """What a page shows again: `values` as typed and `errors` by field. `data` when valid."""

    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    data: Model | None = None
    message: str = ""
    """An error of the whole form."""

    def refuse(self, error: AppError) -> None:
        """Take over what a service said."""
        self.data = None
        self.errors.update(error.fields)
        if not error.fields:
            self.message = error.message

    @property
    def ok(self) -> bool:
        return self.data is not None


def empty_form(**values: Any) -> Form[Any]:
    return Form(values=dict(values))


def _plain(data: FormData, lists: frozenset[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in data:
        if key == CSRF_FIELD:
            continue
        values[key] = data.getlist(key) if key in lists else data[key]
    return values


async def read_form(
    request: Request, model: type[Model], *, lists: frozenset[str] = frozenset()
) -> Form[Model]:
    """Validate a posted form. Empty optional fields count as absent; `lists` may repeat."""
    values = _plain(await request.form(), lists)
    return check_form(values, model)


def check_form(values: Mapping[str, Any], model: type[Model]) -> Form[Model]:
    form: Form[Model] = Form(values=dict(values))
    required = {name for name, info in model.model_fields.items() if info.is_required()}
    given = {k: v for k, v in values.items() if v != "" or k in required}
    try:
        form.data = model.model_validate(given)
    except ValidationError as error:
        form.errors = field_errors(error.errors(include_url=False))
        form.message = form.errors.pop(WHOLE, "")
    return form


def form_of(
    model: type[Model], *, lists: frozenset[str] = frozenset()
) -> Callable[[Request], Coroutine[Any, Any, Form[Model]]]:
    """Return a dependency that reads and checks a posted form."""

    async def read(request: Request) -> Form[Model]:
        return await read_form(request, model, lists=lists)

    return read
