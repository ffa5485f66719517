"""The page's files: compressed once, with a tag that changes when they do, and the policy that binds the page."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

POLICY: Final = "; ".join(
    [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
        "trusted-types rendered",
    ]
)  # fmt: skip
"""Nothing but this server's own files runs or is fetched; no inline script or style."""

TYPES: Final = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}  # fmt: skip


class Asset(NamedTuple):
    """`etag` with its quotes"""

    raw: bytes
    gzipped: bytes
    etag: str
    media_type: str


def asset_names() -> list[str]:
    """All files that the page may ask for, but its HTML."""
    folder = files("gemmafile.web").joinpath("assets")
    return sorted(entry.name for entry in folder.iterdir() if entry.name.rpartition(".")[2] in TYPES)


@cache
def find_asset(name: str) -> Asset | None:
    """A file of the page by its name; None where there is none."""
    if name != "index.html" and name not in asset_names():
        return None
    folder = files("gemmafile.web")
    raw = (folder if name == "index.html" else folder.joinpath("assets")).joinpath(name).read_bytes()
    etag = '"' + hashlib.sha256(raw).hexdigest()[:20] + '"'
    return Asset(raw, gzip.compress(raw, 9, mtime=0), etag, TYPES[name.rpartition(".")[2]])
