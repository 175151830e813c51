"""The pieces of a report's page: one HTML file without scripts or links to anything outside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

BARS = 'class="bars"'  # attributes of a column of bars
MARK = "<!-- made by tools.report -->"  # by which an earlier report is known

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6570; --paper: #fff; --panel: #f5f7f9; --line: #dde3e8;
  --good: #17803d; --bad: #c22f2f; --accent: #2f6feb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #98a3ae; --paper: #14181c; --panel: #1d2228;
  --line: #333b43; --good: #4fc078; --bad: #f07b72; --accent: #6ea3ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
header p, .note { color: var(--soft); margin: 4px 0 0; overflow-wrap: anywhere; }
.note { font-size: .88rem; }
section > * + * { margin-top: 12px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 22px 0 6px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 22px; }
.card { background: var(--panel); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
.plot { background: var(--panel); border-radius: 10px; padding: 10px 12px 6px; }
.plot figcaption { font-size: .88rem; font-weight: 600; }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(220px, 47%), 1fr)); gap: 8px; }
.views img { border-radius: 6px; }
.views figcaption { color: var(--soft); font-size: .8rem; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; border: 1px solid var(--line); border-radius: 10px; }
.words td { text-align: left; }
table { border-collapse: collapse; min-width: min(480px, 86vw); font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; background: var(--panel); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--panel); }
tr.strong td { font-weight: 650; }
.bar { position: relative; width: 180px; height: 10px; border-radius: 5px; background: var(--line); overflow: hidden; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--accent); border-radius: 5px; }
.bar b { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1px; background: var(--ink); }
@media (max-width: 620px) { main { padding: 20px 14px 48px; } th, td { padding: 5px 8px; }
  th.bars, td.bars { display: none; } .card { padding: 10px 12px; } .card b { font-size: 1.15rem; } }
.up { color: var(--good); } .down { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .82rem; color: var(--soft); margin: 8px 0; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px;
  vertical-align: -1px; border: 1px solid var(--line); }
pre { background: var(--panel); border-radius: 10px; padding: 12px 14px; margin: 8px 0; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "Liberation Mono", Menlo, monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
"""


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """The whole file; `parts` are HTML already."""
    return (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Escaped, and without what no XML file may hold."""
    return escape("".join(c for c in str(value) if c.isprintable() or c in "\n\t"))


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def cards(entries: Sequence[tuple[str, str]]) -> str:
    """Large figures with what they are: (figure, words) each."""
    inner = "".join(
        f'<div class="card"><b>{text(value)}</b><span>{text(words)}</span></div>' for value, words in entries
    )
    return f'<div class="cards">{inner}</div>'


def facts(entries: Iterable[tuple[str, object]]) -> str:
    """A table of names and words."""
    return f'<div class="scroll words"><table>{"".join(_row("td", entry) for entry in entries)}</table></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], strong: Sequence[int] = ()) -> str:
    """Cells are text, or HTML where they are a :class:`Cell`; `strong`: numbers of the rows that stand out."""
    lines = [_row("th", head)]
    lines += [_row("td", row, ' class="strong"' if number in strong else "") for number, row in enumerate(rows)]
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def _row(tag: str, row: Sequence[object], mark: str = "") -> str:
    cells = (cell if isinstance(cell, Cell) else Cell(text(cell)) for cell in row)
    return f"<tr{mark}>" + "".join(f"<{tag}{cell.attributes}>{cell}</{tag}>" for cell in cells) + "</tr>"


class Cell(str):
    """HTML of a table's cell, with attributes of its own."""

    attributes = ""

    def __new__(cls, content: str, attributes: str = ""):
        cell = super().__new__(cls, content)
        cell.attributes = f" {attributes}" if attributes else ""
        return cell


def change(value: float) -> Cell:
    """A signed difference, in colour."""
    kind = "up" if value > 0.005 else "down" if value < -0.005 else ""
    return Cell(f"{value:+.2f}".replace("-", "−"), f'class="{kind}"')


def bar(value: float, mark: float) -> Cell:
    """A bar of `value` percent with a mark at another; phones leave it out."""
    return Cell(f'<div class="bar"><i style="width: {value:.1f}%"></i><b style="left: {mark:.1f}%"></b></div>', BARS)


def shaded(words: str, strength: float) -> Cell:
    """A cell with a background from red (−1) through none to green (1)."""
    strength = max(-1.0, min(1.0, strength))
    colour = "34,160,84" if strength > 0 else "220,60,60"
    return Cell(text(words), f'style="background: rgba({colour},{0.55 * abs(strength):.2f})"')


def plot(caption: str, svg: bytes) -> str:
    return f'<figure class="plot"><figcaption>{text(caption)}</figcaption>{image(svg, "svg+xml", caption)}</figure>'


def view(jpeg: bytes, caption: str, name: str) -> str:
    return f"<figure>{image(jpeg, 'jpeg', f'{caption}, {name}')}<figcaption>{text(caption)}</figcaption></figure>"


def image(data: bytes, kind: str, words: str) -> str:
    """An <img> that carries its data; `kind`: svg+xml, jpeg or png; `words`: for those who cannot see it."""
    return f'<img alt="{text(words)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}"/>'


def figures(parts: Iterable[str], kind: str = "figures") -> str:
    return f'<div class="{kind}">' + "\n".join(parts) + "</div>"


def legend(entries: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Names with their RGB colours."""
    items = (f'<span><i style="background: rgb({r},{g},{b})"></i>{text(name)}</span>' for name, (r, g, b) in entries)
    return f'<div class="legend">{"".join(items)}</div>'


def code(words: str, wrap: bool = False) -> str:
    return f'<pre class="wrap">{text(words)}</pre>' if wrap else f"<pre>{text(words)}</pre>"


def details(words: str, inner: str) -> str:
    return f"<details><summary>{text(words)}</summary>{inner}</details>"
