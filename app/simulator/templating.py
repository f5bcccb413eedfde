"""The simulator's web pages as responses. Whatever a caller sent is escaped, and a page has no script."""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from app.simulator import wire

_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(name: str, status: int = 200, **values: object) -> Response:
    """Make a page of a template; no browser keeps it, so that going back shows what is so by then."""
    text = _TEMPLATES.get_template(f"{name}.html").render(values)
    # A refid may hold anything, a lone surrogate too: that has no UTF-8, but it has a character reference.
    body = text.encode("ascii", "xmlcharrefreplace")
    return Response(body, status, {"Content-Type": wire.HTML, "Cache-Control": "no-store"})
