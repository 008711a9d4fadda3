"""The chat page: files of this package, read once."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from starlette.responses import Response

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# The page needs nothing from anywhere else, and is not to be shown inside another one.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page: where it is served, and what."""

    path: str
    content: bytes
    media_type: str

    def to_response(self) -> Response:
        return Response(self.content, media_type=self.media_type, headers=_HEADERS)


def read_page_files() -> list[PageFile]:
    """All files of the page; `index.html` is served at /, the others below /page/."""
    folder = resources.files("nemodiff_trt.runtime.server") / "page"
    files = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        kind = _TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
            files.append(PageFile(path, entry.read_bytes(), kind))
    return files
