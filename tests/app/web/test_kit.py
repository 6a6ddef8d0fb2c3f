"""The macro kit, filters, forms, table state, nonce stamps: without a database."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from jinja2 import UndefinedError
from pydantic import BaseModel, Field
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, select

from app.errors import InvalidInput
from app.metrics.comparison import Cell, Difference
from app.metrics.forest import ForestBar, bar, scale_for
from app.specs.conversation import Conversation, ImportFunnel, Message, ToolCall
from app.web import filters
from app.web.forms import check_form
from app.web.nonce import QUOTED, TAG, stamp
from app.web.tables import SortColumn, decode_key, encode_key, keyset, page, read_state
from app.web.templating import environment
from app.web.vendor import AssetMissing, icons_named, install

EVIL = '<script>alert(1)</script><b hx-get="/x">"'


def show(source: str, **values: object) -> str:
    return environment().from_string(source).render(**values)


def test_status_and_verdict_have_words_beside_the_glyph() -> None:
    assert 'class="st st-running">training, 60 %' in show(
        "{{ ui.status('running', 'training, 60 %') }}"
    )
    html = show("{{ ui.verdict('within', 'within 2 points') }}")
    assert "vd-good" in html
    assert "✓" in html
    assert "within 2 points" in html


def test_metric_cell_shows_n_value_delta_and_interval() -> None:
    cell = Cell(0.929, 0.917, 0.939, 2060)
    delta = Difference("#12", "#7", "exact_match", 0.035, 0.024, 0.046, 2060, "better", "")
    html = show("{{ ui.metric_cell('exact_match', c, d) }}", c=cell, d=delta)
    for part in ("n 2,060", "<b>92.9</b>", "▲ +3.5", "[+2.4, +4.6]", 'class="good"', "better"):
        assert part in html, part
    plain = show("{{ ui.metric_cell('exact_match', c) }}", c=cell)
    assert "91.7 … 93.9" in plain
    assert "—" in show("{{ ui.metric_cell('exact_match', None) }}")


def test_lower_is_better_keeps_the_arrow_of_the_number() -> None:
    delta = Difference("a", "b", "ece", -0.037, -0.046, -0.028, 2060, "better", "")
    html = show("{{ ui.metric_cell('ece', c, d) }}", c=Cell(0.021, 0.01, 0.03, 2060), d=delta)
    assert "▼ −0.037" in html
    assert 'class="good"' in html


def test_no_evidence_is_not_coloured() -> None:
    delta = Difference("a", "b", "exact_match", 0.002, -0.005, 0.009, 2060, "no evidence", "")
    html = show("{{ ui.metric_cell('exact_match', c, d) }}", c=Cell(0.9, 0.8, 0.95, 2060), d=delta)
    assert "≈ +0.2" in html
    assert "good" not in html


def test_forest_bar_shades_the_good_side() -> None:
    scale = scale_for([(-1.5, 0.1)], 2)
    html = show(
        "{{ ui.forest(b, s, 'within', 'x') }}", b=bar(scale, -0.7, (-1.5, 0.1), -2), s=scale
    )
    assert 'role="img"' in html
    assert "var(--good)" in html
    lower = ForestBar(10, 20, 30, 40, 60)
    assert 'x="2.0" y="2" width="58.0"' in show(
        "{{ ui.forest(b, s, 'within', 'x') }}", b=lower, s=scale
    )


def test_funnel_adds_up_on_the_page() -> None:
    funnel = ImportFunnel(
        format="openai_chat",
        records=10,
        calls=6,
        duplicates=1,
        skipped={"empty": 1},
        quarantined={"not_json": 2},
        folded=2,
        conversations=4,
        targets=5,
    )
    html = show("{{ ui.funnel(f) }}", f=funnel)
    for part in ("not json", "Records in all", "6 calls − 2 folded", "4 conversations"):
        assert part in html, part
    assert "choice" not in html
    forked = funnel.model_copy(update={"conversations": 5})
    assert "2 folded into longer ones + 1 further choice = <b>5" in show(
        "{{ ui.funnel(f) }}", f=forked
    )


def test_hostile_content_stays_text() -> None:
    conversation = Conversation(
        messages=(
            Message(role="user", content=EVIL, name=EVIL),
            Message(
                role="assistant",
                content=EVIL,
                reasoning=EVIL,
                reference=EVIL,
                flags=(EVIL,),
                is_target=True,
                tool_calls=(ToolCall(name=EVIL, arguments=EVIL, id=EVIL),),
            ),
        )
    )
    html = show("{{ ui.conversation(c) }}{{ ui.code(e) }}{{ ui.log([e]) }}", c=conversation, e=EVIL)
    html += show(
        "{{ ui.empty(e, e) }}{{ ui.note('bad', e, e) }}{{ ui.copy(e) }}{{ ui.chart('c', e, [{'name': e, 'label': e, 'points': []}]) }}",
        e=EVIL,
    )
    assert "<script" not in html
    opened = {match["name"] for match in TAG.finditer(html)}
    assert not opened & {"script"}
    # Wherever it appears it is text: within quotes, or with its angle bracket escaped.
    assert not any("hx-get" in QUOTED.sub("", m["attributes"]) for m in TAG.finditer(html))


def test_tool_calls_are_rendered_as_calls() -> None:
    message = Message(
        role="assistant", tool_calls=(ToolCall(name="lookup", arguments='{"a":1}'),), is_target=True
    )
    html = show("{{ ui.message(m) }}", m=message)
    assert "<b>lookup</b>" in html
    assert "&#34;a&#34;: 1" in html
    assert "msg-t" in html


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        show("{{ nothing }}")


def test_dialog_puts_the_focus_on_the_safe_choice() -> None:
    html = show(
        "{% call ui.dialog('d', 'Delete x?', '/x', 'Delete x', keep='Keep it', danger=True, typed='x') %}body{% endcall %}"
    )
    assert "data-close autofocus>Keep it" in html
    assert 'name="csrf_token"' in html
    assert 'data-typed="x"' in html


def test_htmx_elements_are_stamped_with_the_nonce() -> None:
    assert stamp('<a href="/x">') == '<a href="/x">'
    stamped = stamp('<a href="{{ url(">") }}" hx-get="/x" {% if a > b %}x{% endif %}>')
    assert stamped.startswith('<a hx-nonce="{{ csp_nonce() }}" href=')
    assert stamp('<p title="hx-get is a word">') == '<p title="hx-get is a word">'
    assert stamp("<form hx-post='/x'><b>").count("hx-nonce") == 1
    assert "hx-nonce" in stamp('<body hx-headers:inherited=\'{"a": "b"}\'>')


def test_clock_by_distance() -> None:
    today = datetime(2026, 11, 24, 13, 42, tzinfo=UTC)
    assert filters.clock(datetime(2026, 11, 24, 9, 5, tzinfo=UTC), today) == "09:05"
    assert filters.clock(datetime(2026, 11, 4, 9, 48, tzinfo=UTC), today) == "4 Nov 09:48"
    assert filters.clock(datetime(2025, 11, 4, 9, 48, tzinfo=UTC), today) == "4 Nov 2025 09:48"


def test_small_filters() -> None:
    assert filters.plural(1, "run") == "1 run"
    assert filters.plural(2000, "run") == "2,000 runs"
    assert filters.with_query("/x", {"a": "1", "b": "2"}, b=None, c="ü") == "/x?a=1&c=%C3%BC"
    assert filters.pretty_json("not json") == "not json"


class Knobs(BaseModel):
    alpha: float = Field(ge=0, le=1)
    steps: int | None = Field(default=None, ge=1)
    mode: Literal["a", "b"] = "a"


def test_form_errors_are_sentences_and_values_are_kept() -> None:
    form = check_form({"alpha": "1.7", "steps": "x", "mode": ""}, Knobs)
    assert form.data is None
    assert form.errors == {"alpha": "Must be at most 1.", "steps": "Must be a whole number."}
    html = show(
        "{{ ui.form_errors(f) }}{{ ui.number(f, 'alpha', 'Alpha', hint='0 to 1') }}"
        "{{ ui.select(f, 'mode', 'Mode', [('a', 'A'), ('b', 'B')]) }}{{ ui.choice(f, 'mode', 'Mode', [('a', 'A', 'x')]) }}"
        "{{ ui.textarea(f, 'steps', 'Steps') }}{{ ui.checkbox(f, 'mode', 'On') }}{{ ui.submit('Go', off='no') }}",
        f=form,
    )
    for part in (
        "2 fields need a change",
        'href="#f-alpha"',
        'value="1.7"',
        'aria-invalid="true" aria-describedby="f-alpha-h f-alpha-e"',
        "Off: no",
    ):
        assert part in html, part
    fine = check_form({"alpha": "0.5", "steps": ""}, Knobs)
    assert fine.ok
    assert fine.data == Knobs(alpha=0.5)


def test_keyset_pages_cover_every_row_once() -> None:
    engine = create_engine("sqlite://")
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))
    table.create(engine)
    columns = [SortColumn("name", table.c.name), SortColumn("id", table.c.id, "desc")]
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": i, "name": f"n{i % 7}"} for i in range(1, 121)])
        for query in ({}, {"sort": "name", "order": "desc"}, {"sort": "id"}):
            seen: list[int] = []
            current: dict[str, str] = dict(query)
            while True:
                state = read_state("/t", current, columns)
                rows = connection.execute(keyset(select(table), state, table.c.id)).all()
                found = page(rows, state, lambda r, s=state: (getattr(r, s.sort.key), r.id))
                seen += [r.id for r in found.rows]
                if found.next_url is None:
                    break
                current["after"] = found.next_url.partition("after=")[2]
            assert sorted(seen) == list(range(1, 121))
    engine.dispose()


def test_sort_links_turn_round_and_drop_the_cursor() -> None:
    columns = [SortColumn("name", None), SortColumn("n", None, "desc")]
    state = read_state(
        "/t",
        {"sort": "name", "after": encode_key("x", 3), "q": "a", "z": "b"},
        columns,
        filters=["q"],
    )
    assert state.sort_link(columns[0]) == "/t?sort=name&q=a&order=desc"
    assert state.sort_link(columns[1]) == "/t?sort=n&q=a&order=desc"
    assert state.aria_sort(columns[0]) == "ascending"
    assert state.without("q") == "/t?sort=name"
    html = show(
        "<table><tr>{{ ui.sort_head(s, c, 'Name', 'rows') }}</tr></table>", s=state, c=columns[0]
    )
    assert 'aria-sort="ascending"' in html
    assert "hx-nonce" in html


@pytest.mark.parametrize("text", ["!", "AAAA", encode_key("x", 1)[:-3], "bnVsbA"])
def test_damaged_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        decode_key(text)


def test_assets_are_copied_and_a_missing_one_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssetMissing, match="npm ci"):
        install(tmp_path)


def test_icons_are_found_in_calls_and_comments(tmp_path: Path) -> None:
    page_file = tmp_path / "x.html"
    page_file.write_text("{{ ui.icon('sun') }} {# icons: moon star #} data-theme-icon=\"dark\"")
    found = icons_named(tmp_path)
    assert {"sun", "moon", "star"} <= found
    assert "dark" not in found


def test_page_parts_render() -> None:
    step = SimpleNamespace(
        state="now",
        status="running",
        name="Run",
        title="#14",
        href="/r",
        text="step 1",
        progress=0.6,
    )
    html = show(
        "{{ ui.page_header('T', ('a',), 'running') }}{{ ui.pipeline([s]) }}{{ ui.stats([('a', 1), ('b', 2, 'x')]) }}"
        "{{ ui.facts([('a', 1)]) }}{{ ui.progress(5, 10, 'P', 'steps', live=True) }}{{ ui.live_note() }}"
        "{{ ui.tabs([('A', '/a', True)], 'Views') }}{{ ui.next_action('t', 'x', '/x', 'Go') }}{{ ui.dot(7) }}"
        "{{ ui.uploader('/files', {'project': 'p'}, '.jsonl') }}{{ ui.hash('abcdef0123456789') }}"
        "{% call ui.card('C', foot='f') %}b{% endcall %}{{ ui.post_button('/x', 'Go') }}{{ ui.time(None) }}",
        s=step,
    )
    for part in (
        'aria-current="step"',
        'max="10"',
        "dot-o",
        'data-endpoint="/files"',
        "abcdef01<",
        "data-live-lost",
    ):
        assert part in html, part
    assert "style=" not in html
