"""The page's files, and the headers that keep a browser from doing anything else with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from starlette.responses import Response

PAGE = "page.html"

KINDS: Mapping[str, str] = MappingProxyType(
    {
        PAGE: "text/html",
        "page.css": "text/css",
        "icon.svg": "image/svg+xml",
        **{
            f"{name}.js": "text/javascript"
            for name in (
                "page",
                "server",
                "elements",
                "numbers",
                "charts",
                "live",
                "last",
                "skip_map",
                "chat",
                "controls",
            )
        },
    }
)
"""The media type of each file."""

PATHS = frozenset({"/ui", *(f"/ui/{name}" for name in KINDS if name != PAGE)})
"""Where they are."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text cannot become HTML, whatever a script does with it
        "trusted-types 'none'",
    )
)

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": _POLICY,
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
)
"""Of every file: it runs nothing but the page's own scripts, talks with this server only, and is in no frame."""


def file_response(name: str) -> Response:
    """One of `KINDS` as an answer."""
    content = Path(__file__).with_name(name).read_bytes()
    return Response(content, media_type=KINDS[name], headers=dict(HEADERS))
