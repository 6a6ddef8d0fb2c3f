"""The template linter: what our CSP, htmx and accessibility rules ask of every template."""

import re
from pathlib import Path

import pytest

from app.web.nonce import TAG
from app.web.templating import STATIC, TEMPLATES, environment
from app.web.vendor import FILES, HTMX, ICONS, ROOT, icons_named

PAGES = sorted(TEMPLATES.rglob("*.html"))
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
JINJA = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
LABELLED = {"input", "select", "textarea"}


def problems(source: str) -> list[str]:
    """Return what breaks the rules, one sentence each."""
    source = COMMENT.sub("", source)
    found = []
    if re.search(r"\|\s*safe\b|\bMarkup\b|autoescape\s+false", source):
        found.append("marks text as safe: content of logs is hostile")
    if re.search(r"<style\b", source):
        found.append("has a <style>: the CSP refuses it, use stillhouse.css")
    for match in TAG.finditer(source):
        name, attributes = match["name"].lower(), match["attributes"]
        found += [f"<{name}> {words}" for words in _tag_problems(name, attributes, source)]
    return found


def _tag_problems(name: str, attributes: str, source: str) -> list[str]:
    rules = {
        "has an inline handler": re.search(r"\son\w+\s*=", attributes),
        "has hx-on, which is code": re.search(r"\bhx-on\b", attributes),
        "has a js: value": re.search(r"[\"'{\s](?:js|javascript):", attributes),
        "has a trigger filter, which is code": re.search(
            r"hx-trigger=([\"'])[^\"']*\[", attributes
        ),
        "has a style attribute: the CSP refuses it": re.search(r"(?:^|\s)style\s*=", attributes),
    }
    found = [words for words, hit in rules.items() if hit]
    if name == "script" and not ("src=" in attributes and "nonce=" in attributes):
        found.append("is inline or has no nonce")
    if name == "button" and "type=" not in attributes:
        found.append("has no type")
    if name == "img" and "alt=" not in attributes:
        found.append("has no alt")
    if name == "div" and re.search(r'class="tw\b', attributes) and "tabindex=" not in attributes:
        found.append(
            "scrolls sideways but cannot take the focus: tabindex, role=region, aria-label"
        )
    if name == "th" and "scope=" not in attributes:
        found.append("has no scope")
    if name in LABELLED and not _labelled(attributes, source):
        found.append(f"has no label: {attributes.strip()[:60]}")
    if name == "form" and 'method="post"' in attributes and "csrf" not in source:
        found.append("posts without ui.csrf()")
    return found


def _labelled(attributes: str, source: str) -> bool:
    if 'type="hidden"' in attributes or "aria-label" in attributes:
        return True
    match = re.search(r'\bid="([^"]+)"', attributes)
    if match and f'for="{match[1]}"' in source:
        return True
    at = source.find(attributes)
    before = JINJA.sub("", source[:at])
    return before.rfind("<label") > before.rfind("</label>")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(TEMPLATES)))
def test_template_keeps_the_rules(path: Path) -> None:
    found = problems(path.read_text())
    if path.parent.name == "accounts":
        # Before sign-in there is no session to bind a token to; Fetch metadata guards these.
        found = [f for f in found if f != "<form> posts without ui.csrf()"]
    assert found == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(TEMPLATES)))
def test_template_compiles(path: Path) -> None:
    environment().get_template(str(path.relative_to(TEMPLATES)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('<a onclick="x()">', "inline handler"),
        ('<a hx-on:click="x()">', "hx-on"),
        ('<a hx-vals="js:{a: 1}">', "js: value"),
        ('<a href="javascript:x">', "js: value"),
        ('<a hx-trigger="click[ctrlKey]">', "trigger filter"),
        ("<script>x</script>", "inline"),
        ('<script src="x"></script>', "no nonce"),
        ("<button>x</button>", "no type"),
        ('<input name="a">', "no label"),
        ('<p style="a:b">', "style attribute"),
        ("<style>p{}</style>", "<style>"),
        ("{{ x | safe }}", "safe"),
        ("<th>x</th>", "no scope"),
        ('<img src="x">', "no alt"),
        ('<div class="tw"><table>', "focus"),
        ('<form method="post">', "ui.csrf()"),
    ],
)
def test_linter_catches(source: str, words: str) -> None:
    assert any(words in found for found in problems(source)), source


def test_linter_accepts_good_forms() -> None:
    good = '<label for="a">A</label><input id="a"><label>B <input type="radio"></label>'
    assert problems(good) == []


def test_static_files_that_templates_name_exist() -> None:
    ours, vendored = set(), set()
    for path in PAGES:
        for name in re.findall(r"static\('([^']+)'\)", path.read_text()):
            (vendored if name.startswith("vendor/") else ours).add(name)
    assert ours
    assert [name for name in ours if not (STATIC / name).is_file()] == []
    assert vendored <= {f"vendor/{target}" for target in FILES.values()} | {
        "vendor/icons.css",
        f"vendor/{HTMX}",
    }


def test_conventions_name_every_macro() -> None:
    inventory = (ROOT / "docs" / "conventions.md").read_text().partition("## Macro kit")[2]
    words = set(re.findall(r"`(\w+)", inventory))
    assert set(vars(environment().globals["ui"])) <= words


def test_icons_exist() -> None:
    folder = ROOT / "node_modules" / ICONS
    assert folder.is_dir(), "run `npm ci --ignore-scripts`"
    missing = [name for name in icons_named(TEMPLATES) if not (folder / f"{name}.svg").is_file()]
    assert missing == []


def test_scripts_write_no_markup_and_no_code() -> None:
    banned = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    )
    for path in (STATIC / "js").glob("*.js"):
        assert not banned.search(path.read_text()), path.name


def test_nothing_third_party_is_tracked_and_the_lock_names_no_host() -> None:
    lock = (ROOT / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "http://" not in lock
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"node_modules/", "static/vendor/"} <= set(ignored)
