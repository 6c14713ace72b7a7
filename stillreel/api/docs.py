"""GET /docs: the API's reference in a browser, by Scalar, from this server alone."""

from __future__ import annotations

import gzip
import html
import json
from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

SCALAR_VERSION = "1.34.0"
FOREVER = "public, max-age=31536000, immutable"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
CONFIGURATION = {
    "url": "openapi.json",
    "proxyUrl": "",
    "withDefaultFonts": False,
    "hideClientButton": True,
    "persistAuth": False,
    "defaultOpenAllTags": True,
    "defaultHttpClient": {"targetKey": "shell", "clientKey": "curl"},
}
"""Scalar's own fonts, proxy and web client are elsewhere; keys that were typed in are not kept."""


@router.get("/docs")
def show_docs(request: Request) -> HTMLResponse:
    """The page; its addresses are relative, so it works behind a proxy that adds a prefix."""
    page = _PAGE.format(
        title=html.escape(request.app.title),
        configuration=html.escape(json.dumps(CONFIGURATION)),
        version=SCALAR_VERSION,
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


@router.get(f"/docs/scalar-{SCALAR_VERSION}.js")
def send_scalar(request: Request) -> Response:
    """Scalar's script, as npm's package has it; kept by browsers for good."""
    script, headers = _packed(), {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        script = gzip.decompress(script)
    return Response(script, headers=headers, media_type="text/javascript")


@lru_cache(maxsize=1)
def _packed() -> bytes:
    return (files("stillreel.api") / "static" / "scalar.js.gz").read_bytes()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
</head>
<body>
<noscript>This needs JavaScript; <a href="openapi.json">openapi.json</a> says the same.</noscript>
<script id="api-reference" data-configuration="{configuration}"></script>
<script src="docs/scalar-{version}.js"></script>
</body>
</html>
"""
