"""Foreign templates: what they reach for is refused, and what they ask for is bounded."""

import resource
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from workers.distill import chat_templates
from workers.distill.chat_templates import ChatTemplate
from workers.distill.errors import TemplateError

TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "How may I help?"},
]
OUTSIDE = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "not a template's to read",
    "{{ cycler.__init__.__globals__ }}": "not a template's to read",
    "{{ raise_exception.__globals__ }}": "not a template's to read",
    "{{ messages|attr('__class__') }}": "not a template's to read",
    "{{ self._TemplateReference__context }}": "not a template's to read",
    "{% set ns = namespace(x=1) %}{% set ns.__class__ = 2 %}": "may not hold '__class__'",
    "{{ messages.append(1) }}": "not a template's to read",
    "{{ '%s'.format_map(messages[0]) }}{{ '{0.__class__}'.format(messages) }}": "not a template's to read",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}{{ os }}": "no loader",
    "{% extends 'base.html' %}": "no loader",
    "{{ open('/etc/passwd') }}": "'open' is undefined",
    "{{ lipsum(100000) }}": "'lipsum' is undefined",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}": "recursion",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "refused 2 messages",
}
BOUNDED = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "loop turns",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": (
        "loop turns"
    ),
    "{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}": ("characters of text"),
    "{{ 'x' * 10000000000 }}": "memory",
    "{{ '%9999999999d' % 1 }}": "memory",
    "{{ '{:>9999999999}'.format('') }}": "memory",
    "{{ ''|center(9999999999) }}": "memory",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}": "memory",
    "{{ ('x' * 9999999).replace('x', 'y' * 9999999) }}": "memory",
    "{{ messages * 999999999 }}": "items",
    "{{ 9 ** 999999999 }}": "bits",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}{{ ns.x }}": "bits",
}


def words_of(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, {}).render(TALK)
    return str(caught.value)


@pytest.mark.parametrize("source", OUTSIDE)
def test_what_is_not_the_templates_own_is_refused(source: str) -> None:
    found = words_of(source)
    assert OUTSIDE[source] in found
    assert "chat_template.jinja" in found


@pytest.mark.parametrize("source", BOUNDED)
def test_work_memory_and_text_are_bounded(source: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.thread_time()
    found = words_of(source)
    assert "The chat template was stopped" in found
    assert BOUNDED[source] in found
    assert "chat_template.jinja" in found
    assert time.thread_time() - started < chat_templates.MOST_SECONDS + 2
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < chat_templates.MOST_MEMORY + (64 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits, "given back"


def test_seconds_are_bounded_where_steps_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "MOST_SECONDS", 0.3)
    slow = (
        "{% set x = 'ab' * 1000000 %}{% for i in range(99999) %}{% set y = x|upper %}{% endfor %}"
    )
    started = time.thread_time()
    assert "0.3 seconds" in words_of(slow)
    assert time.thread_time() - started < 1


def test_a_template_of_a_megabyte_is_not_read() -> None:
    with pytest.raises(TemplateError, match="at most 1,000,000 are read"):
        ChatTemplate("x" * 1_000_001, {})


def test_the_bounds_hold_in_a_thread_and_leave_other_text_alone() -> None:
    found: list[str] = []
    work = threading.Thread(target=lambda: found.append(words_of("{{ 'x' * 10000000000 }}")))
    work.start()
    work.join()
    assert "memory" in found[0]
    text, marks = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% for a in 'abc' %}{{ loop.index }}/{{ loop.length }} {% endfor %}{{ now }}",
        {"now": "§"},
    ).render(TALK)
    assert text == "[user][assistant]How may I help?1/3 2/3 3/3 §"
    assert [text[a:b] for a, b in marks] == ["How may I help?"]


def test_a_day_is_the_same_one_every_day() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    program = f"""
        import time
        time.time = lambda: 4_000_000_000.0
        from workers.distill.chat_templates import ChatTemplate
        print(ChatTemplate({source!r}, {{}}).render([])[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ChatTemplate(source, {}).render([])[0] == "26 Jul 2024"
