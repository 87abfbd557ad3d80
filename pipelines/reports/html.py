"""Render self-contained HTML pages: no scripts and no external resources, with a light and a dark theme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Render a template of the folder `templates`."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # titles and categories are untrusted input
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": _number, "percent": _percent, "change": _change, "zip": zip}
    return templates.get_template(template).render(values)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(share: float) -> str:
    """Format a share in percent, with a second decimal if one decimal would round to 0."""
    return f"{share:.1%}" if round(share, 3) else f"{share:.2%}" if share else "0%"


def _change(now: float, before: float) -> str:
    """Format the relative change."""
    return f"{now / before - 1:+.1%}" if before else "new"
