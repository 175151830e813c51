"""The figures of a report, as SVG that follows the page from light to dark."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

MAX_POINTS = 1500  # of a curve; longer ones are thinned out evenly
SIZE = (4.8, 2.5)  # inches
BLUE, ORANGE, GREEN, RED, GREY = "#3b82f6", "#e8740c", "#2f9e58", "#e04848", "#8a949e"
_INK, _LINE = "#123456", "#654321"  # stand for the page's colours until the file is written
_THEME = (
    "<style>:root{--ink:#3d4650;--line:#dde3e8}"
    "@media (prefers-color-scheme:dark){:root{--ink:#b4bec8;--line:#39424b}}</style>"
)
_SETTINGS = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _LINE),
    **dict.fromkeys(("axes.spines.left", "axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "font.family": ["sans-serif"],
    "font.size": 10,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
}
Curve = tuple[Sequence[float], Sequence[float]]


def curves(lines: Mapping[str, Curve], level: tuple[str, float] | None = None, marks: bool = False) -> bytes:
    """Values over iterations.

    Args:
        lines: (iterations, values) by name.
        level: name and value of a line across.
        marks: show the points.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _empty()
        for colour, (name, (x, y)) in zip((BLUE, ORANGE, GREEN, RED, GREY), lines.items(), strict=False):
            x, y = thinned(x), thinned(y)
            axes.plot(x, y, color=colour, label=name, marker="o" if marks else None, markersize=4)
        if level is not None:
            axes.axhline(level[1], color=GREY, linestyle="--", linewidth=1.4, label=level[0])
        if len(lines) + (level is not None) > 1:
            _legend(axes)
        return _svg(figure)


def decisions(history: Sequence[Mapping[str, str]]) -> bytes:
    """Fraction of the stored batches that improved at each of the teacher's queries; forced updates along the top."""
    kinds = {"refused": (RED, "o"), "improved": (GREEN, "o"), "forced": (ORANGE, "v"), "fixed": (BLUE, "|")}
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _empty()
        for kind, (colour, marker) in kinds.items():
            rows = thinned([row for row in history if row["decision"] == kind])
            if rows:
                x = [int(row["iteration"]) for row in rows]
                y = [float(row["fraction_improved"] or 1.06) for row in rows]
                axes.scatter(x, y, s=16, c=colour, marker=marker, label=kind, alpha=0.8, linewidths=1)
        axes.set_ylim(-0.05, 1.12)
        _legend(axes)
        return _svg(figure)


def bands(x: Sequence[float], shares: Mapping[str, Sequence[float]], colours: Sequence[str]) -> bytes:
    """Shares of the pixels, one upon the other, by class."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _empty()
        axes.stackplot(x, list(shares.values()), colors=list(colours))
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        return _svg(figure)


def thinned(values: Sequence) -> Sequence:
    """At most MAX_POINTS of them, evenly, the last one included."""
    step = -(-len(values) // MAX_POINTS)
    return values if step <= 1 else values[(len(values) - 1) % step :: step]


def _empty() -> tuple:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("iteration")
    return figure, axes


def _legend(axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4, handlelength=1.2, handletextpad=0.4, columnspacing=1
    )


def _svg(figure: Figure) -> bytes:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = file.getvalue().replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")
    _, tag, rest = drawing.partition("<svg")
    attributes, end, body = rest.partition(">")
    return "".join((tag, attributes, end, _THEME, body)).encode()
