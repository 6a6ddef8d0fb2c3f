"""Copy the front-end files the pages load from node_modules into static/vendor (not committed)."""

import re
import shutil
import sys
from pathlib import Path

from app.web import navigation

ROOT = Path(__file__).resolve().parents[2]

FILES: dict[str, str] = {
    "@tabler/core/dist/css/tabler.min.css": "tabler.min.css",
    "uplot/dist/uPlot.iife.min.js": "uplot.min.js",
    "uplot/dist/uPlot.min.css": "uplot.min.css",
    "tus-js-client/dist/tus.min.js": "tus.min.js",
}
# One file: htmx starts by a timer, so an extension that loads later would be too late, and
# until `hx-csp` is there injected attributes would work.
HTMX = "htmx.js"
HTMX_PARTS = (
    "htmx.org/dist/htmx.min.js",
    "htmx.org/dist/ext/hx-csp.min.js",
    "htmx.org/dist/ext/hx-sse.min.js",
    "htmx.org/dist/ext/hx-upsert.min.js",
)
ICONS = "@tabler/icons/icons/outline"
ICON = re.compile(r"""(?:\bicon\(|\bicon_name=)\s*["']([a-z0-9-]+)["']""")
LISTED = re.compile(r"icons: ([a-z0-9 -]+?)\s*#}")
"""A comment in a template that names the icons its variables may hold."""
SOURCE_MAP = re.compile(rb"\n?/[/*]# sourceMappingURL=[^\n]*")


class AssetMissing(RuntimeError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} does not exist: run `npm ci --ignore-scripts` first")


def icons_named(templates: Path) -> set[str]:
    """Return every icon that a template names, in a call or a comment `icons: a b`, or the menu."""
    found = {item.icon for item in navigation.ALL}
    for path in templates.rglob("*.html"):
        text = path.read_text()
        found.update(ICON.findall(text))
        for names in LISTED.findall(text):
            found.update(names.split())
    return found


def _read(source: Path) -> bytes:
    if not source.is_file():
        raise AssetMissing(source)
    # The maps are not served; a reference to them would be a 404 in every console.
    return SOURCE_MAP.sub(b"", source.read_bytes())


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(_read(source))


def install(root: Path = ROOT) -> list[Path]:
    """Fill `root`/static/vendor anew and return what lies there."""
    modules, vendor = root / "node_modules", root / "static" / "vendor"
    fresh = vendor.with_name("vendor.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "icons").mkdir(parents=True)
    for source, target in FILES.items():
        _copy(modules / source, fresh / target)
    (fresh / HTMX).write_bytes(b";\n".join(_read(modules / part) for part in HTMX_PARTS))
    rules = []
    for name in sorted(icons_named(root / "templates")):
        _copy(modules / ICONS / f"{name}.svg", fresh / "icons" / f"{name}.svg")
        rules.append(f".ic-{name}{{--i:url(/static/vendor/icons/{name}.svg)}}\n")
    (fresh / "icons.css").write_text("".join(rules))
    shutil.rmtree(vendor, ignore_errors=True)
    fresh.rename(vendor)
    return sorted(path for path in vendor.rglob("*") if path.is_file())


def main() -> int:
    try:
        files = install()
    except AssetMissing as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"static/vendor: {len(files)} files\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
