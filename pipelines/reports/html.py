"""A page that needs nothing but itself: no scripts, nothing that is loaded, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill in a template that lies beside this file."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # titles and categories come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": _number, "percent": _percent, "change": _change, "zip": zip}
    return templates.get_template(template).render(values)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(share: float) -> str:
    """With a second digit where the first would say that there is nothing."""
    return f"{share:.1%}" if round(share, 3) else f"{share:.2%}" if share else "0%"


def _change(now: float, before: float) -> str:
    """How much more than before."""
    return f"{now / before - 1:+.1%}" if before else "new"
