"""Pages that tools write: one HTML file each, from a jinja2 template, with what it shows inside."""

from pathlib import Path

import jinja2

STYLE_FOLDER = Path(__file__).parent / "report"  # whose page.css every page includes


def page_environment(folder: Path) -> jinja2.Environment:
    """For the templates in a folder: a text is escaped, an unknown name an error."""
    loader = jinja2.FileSystemLoader([folder, STYLE_FOLDER])
    return jinja2.Environment(
        autoescape=True, loader=loader, lstrip_blocks=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
