"""Telling a service that a job is over: an HTTP request of ours to where the job's client asked for it.

It is made and signed as https://www.standardwebhooks.com has it: whoever has the secret can tell that a message is
ours, and when it was sent. Only addresses below one that the deployment's file names are asked, so nobody can have us
ask others, on this network say, and redirections are not followed. Told at least once: a message is repeated until it
is answered by 2xx, ever later, six times in all.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

LIMIT_S: Final = 10.0  # for an answer
LATER_S: Final = (5.0, 30.0, 120.0, 600.0, 3600.0)  # from one try to the next
URL_MAX: Final = 2000
_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 24


def is_allowed(url: str, below: Sequence[str]) -> bool:
    """Whether ``url`` is one of ``below``, or below one: of the same scheme, host and port, its path beneath."""
    if len(url) > URL_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return False
    try:
        asked, port = urlsplit(url), urlsplit(url).port
    except ValueError:
        return False
    if asked.username is not None or asked.password is not None or asked.fragment:
        return False
    if any(segment in (".", "..") for segment in asked.path.lower().replace("%2e", ".").split("/")):
        return False
    for one in below:
        known = urlsplit(one)
        same = (asked.scheme, asked.hostname, port) == (known.scheme, known.hostname, known.port)
        if same and f"{asked.path}/".startswith(known.path if known.path.endswith("/") else f"{known.path}/"):
            return True
    return False


def secret_of(jobs: str) -> bytes:
    """The secret beside the file of jobs, for this user alone; made when it is first asked for. Raises OSError, and
    ValueError for a file that holds something else."""
    path = Path(f"{jobs}.secret")
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(made, "w") as file:
            file.write(_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode() + "\n")
    text = path.read_text().strip()
    if not text.startswith(_PREFIX):
        raise ValueError(f"{path}: expected a secret that begins with {_PREFIX}")
    return base64.b64decode(text.removeprefix(_PREFIX), validate=True)


def signed(secret: bytes, id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a message sent ``at`` (seconds since 1970)."""
    digest = hmac.new(secret, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


def send(url: str, body: bytes, headers: dict[str, str]) -> str:
    """Blocks, for LIMIT_S a step. Why it was not taken; empty: it was."""
    request = urllib.request.Request(url, body, {**headers, "user-agent": "stageline"}, method="POST")
    try:
        with _OPENER.open(request, timeout=LIMIT_S) as answer:
            return "" if 200 <= answer.status < 300 else f"answered {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        return f"answered {error.code}"
    except (OSError, ValueError) as error:  # among them URLError, and what http.client says of nonsense
        return str(error) or type(error).__name__
    except Exception as error:  # http.client's own
        return type(error).__name__


def again_s(tries: int) -> float | None:
    """After so many tries: in how many seconds the next one is; None: there is none."""
    return LATER_S[tries - 1] if tries <= len(LATER_S) else None
