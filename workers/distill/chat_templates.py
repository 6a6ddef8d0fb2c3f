"""Chat templates, run in a sandbox whose time, memory and text are bounded: they are foreign code.

What a template may use is what `transformers` gives it, less what no template needs. Two things
differ on purpose. `strftime_now` tells one fixed day: ids must not change over night, or the
teacher's rows would belong to no conversation tomorrow. And work is counted: a template can ask
for hours or for the whole memory in one line.
"""

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, Undefined, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from workers.distill.errors import TemplateError

MOST_SECONDS = 10.0
"""Of this thread's processor time, for one rendering; a usual one takes a ten-thousandth."""
MOST_STEPS = 1_000_000
"""Turns of loops, calls and sums."""
MOST_CHARACTERS = 32_000_000
"""Of the rendered text."""
MOST_MEMORY = 1 << 30
"""Bytes of address space that one rendering may add."""
MOST_SOURCE = 1_000_000
"""Characters of a template."""
_MOST_ITEMS, _MOST_BITS = 1_000_000, 4096
_ONE_DAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a day, printed by templates; no moment


class _Exhausted(Exception):
    """A rendering went beyond a bound; its text names it."""


class _Spent:
    """What one rendering has used, and the marks it has set."""

    def __init__(self) -> None:
        self.steps = 0
        self.until = time.thread_time() + MOST_SECONDS
        self.pieces: list[str] = []
        self.characters = 0
        self.marks: list[tuple[int, int]] = []

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise _Exhausted(f"{MOST_STEPS:,} loop turns and calls")
        if time.thread_time() > self.until:
            raise _Exhausted(f"{MOST_SECONDS:g} seconds")

    def write(self, piece: str) -> None:
        self.pieces.append(piece)
        self.characters += len(piece)
        if self.characters > MOST_CHARACTERS:
            raise _Exhausted(f"{MOST_CHARACTERS:,} characters of text")


_SPENT: ContextVar[_Spent] = ContextVar("spent")


class _Marks(Extension):
    """`{% generation %}` … `{% endgeneration %}`: where an answer stands in the text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Macro) -> str:
        text: str = caller()
        spent = _SPENT.get()
        spent.marks.append((spent.characters, spent.characters + len(text)))
        return text


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox for foreign templates, with every loop, call and product counted."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, loopcontrols])
        for name in ("urlize", "xmlattr", "random"):
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"tojson": _tojson, "_counted": _Counted}
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _ONE_DAY.strftime,
            "dict": _Dictionaries(),
            "namespace": _Names,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.Filter(loop.iter, "_counted", [], [], None, None)
            loop.iter = counted.set_lineno(loop.lineno)
        return tree

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja's own answer prints as nothing and fails on use only; a probe is no accident.
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not a template's to read")

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        _SPENT.get().step()
        return super().call(context, called, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _SPENT.get().step()
        for one, other in ((left, right), (right, left)):
            if isinstance(one, list | tuple):
                times = other if operator == "*" and isinstance(other, int) else 1
                more = len(other) if operator == "+" and isinstance(other, list | tuple) else 0
                if len(one) * times + more > _MOST_ITEMS:
                    raise _Exhausted(f"a list of {_MOST_ITEMS:,} items")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            grown = bits * abs(right) if operator == "**" else bits + right.bit_length()
            if grown > _MOST_BITS:
                raise _Exhausted(f"a number of {_MOST_BITS:,} bits")
        return super().call_binop(context, operator, left, right)


class _Dictionaries:
    """`dict(…)` for templates, without the type and its methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Names(Namespace):
    """`namespace(…)` for templates: no name of Python's own internals can be stored on it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


class _Counted:
    """What a loop goes over; each turn is a step."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        spent = _SPENT.get()
        for item in self._items:
            spent.step()
            yield item


def _tojson(value: Any, *places: Any, **options: Any) -> str:
    # What `transformers` takes, also by place; Jinja's own filter would escape for HTML.
    names = ("ensure_ascii", "indent", "separators", "sort_keys")
    chosen = {"ensure_ascii": False, **dict(zip(names, places, strict=False)), **options}
    if unknown := chosen.keys() - set(names):
        raise TypeError(f"tojson has no option {min(unknown)!r}")
    return json.dumps(value, **chosen)


def _refuse(message: str) -> None:
    raise JinjaError(message)


class ChatTemplate:
    """One chat template, compiled. Errors: TemplateError, also for each rendering."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MOST_SOURCE:
            raise TemplateError(
                f"The chat template has {len(source):,} characters; at most {MOST_SOURCE:,} are "
                "read. Take the chat_template.jinja that the model was published with."
            )
        self._source = source
        self._special = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        generate: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and [start, end) in it of each marked generation.

        `generate` asks for the beginning of an answer after them. Errors: TemplateError where the
        template refuses, fails, reaches for what is not its own, or goes beyond a bound.
        """
        spent = _Spent()
        token = _SPENT.set(spent)
        try:
            with _bounded_memory():
                for piece in _compiled(self._source).generate(
                    messages=list(messages),
                    tools=list(tools) or None,
                    documents=None,
                    add_generation_prompt=generate,
                    **self._special,
                ):
                    spent.write(piece)
                return "".join(spent.pieces), spent.marks
        except (_Exhausted, MemoryError) as error:
            bound = str(error) or f"{MOST_MEMORY >> 20:,} MiB of memory"
            raise TemplateError(
                f"The chat template was stopped: {len(messages)} messages may not take more than "
                f"{bound}. Take the chat_template.jinja that the model was published with."
            ) from None
        except (
            JinjaError,
            SyntaxError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise TemplateError(
                f"The chat template refused {len(messages)} messages ("
                f"{', '.join(str(m.get('role')) for m in messages[:6])} …): {error!s:.500}. "
                "Mend chat_template.jinja of the checkpoint, or leave such conversations out."
            ) from error
        finally:
            _SPENT.reset(token)


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return _Sandbox().from_string(source)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process add at most MOST_MEMORY meanwhile: one product can ask for a terabyte.

    Only the kernel sees every allocation. Where it counts none (no /proc), the other bounds stay.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MOST_MEMORY
    others = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *others]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
