"""`/playground`: a page to try the served models with, which asks the server's own API.

Its files (`serve/page`) are plain HTML, CSS and JavaScript, the same for every server and user:
they hold no name of a model and need no key. What the page asks does: it passes the gate like any
other request. A strict Content-Security-Policy lets it load and ask nothing but this server, and
forbids markup from texts (Trusted Types: https://www.w3.org/TR/trusted-types/).
"""

from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError

PAGE = "/playground"
FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
    "connect-src": "'self'", "img-src": "'self' data: blob:", "base-uri": "'none'",
    "form-action": "'none'", "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'", "trusted-types": "'none'",
}  # fmt: skip
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}


def add_playground(app: Any) -> tuple[str, ...]:
    """Adds the page's routes to a FastAPI application.

    Returns:
        their paths, which need no key.

    Raises:
        BedstoneError: a file of the page is missing from the installation.
    """
    from fastapi import Request
    from fastapi.responses import RedirectResponse, Response

    files = page_files()
    index = files.pop("index.html")
    contents = {PAGE: (".html", index)}
    contents |= {f"{PAGE}/{name}": (Path(name).suffix, data) for name, data in files.items()}

    async def page(request: Request) -> Response:
        suffix, data = contents[request.scope["path"]]
        return Response(data, media_type=KINDS[suffix], headers=HEADERS)

    async def slash(request: Request) -> Response:
        return RedirectResponse(f"..{PAGE}", headers=HEADERS)  # its own links are relative

    for path in contents:
        app.add_api_route(path, page, methods=["GET"], name=path, response_model=None)
    app.add_api_route(f"{PAGE}/", slash, methods=["GET"], name=f"{PAGE}/", response_model=None)
    return (*contents, f"{PAGE}/")


def page_files() -> dict[str, bytes]:
    """The page's files by name.

    Raises:
        BedstoneError: there are none.
    """
    found = {each.name: each.read_bytes() for each in FOLDER.glob("*.*") if each.suffix in KINDS}
    if "index.html" not in found:
        raise BedstoneError(f"{FOLDER}: the page's files are missing. Install Bedstone again.")
    return found
