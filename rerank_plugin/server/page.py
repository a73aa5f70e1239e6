"""The page at `/`: one file, and the policy under which a browser runs nothing else."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

#: The contents of the elements that a browser runs or applies.
INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class Page:
    """The page, which is read once."""

    def __init__(self) -> None:
        self.html = Path(__file__).with_name("page.html").read_text("utf-8")
        self.headers = {
            "Content-Security-Policy": policy(self.html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    async def answer(self, request: Request) -> Response:
        """Return the page."""
        return Response(self.html, media_type="text/html", headers=self.headers)


def policy(html: str) -> str:
    """Return the policy that allows the page's own style and script, and requests to its server."""
    hashes = {name: digest(text) for name, text in INLINE.findall(html)}
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src '{hashes['style']}'",
            f"script-src '{hashes['script']}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def digest(text: str) -> str:
    """Return the hash of a text as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
