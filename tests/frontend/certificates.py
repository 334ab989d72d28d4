"""A certificate for tests, made by the `openssl` command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """PEM files. ``key`` is plain, ``locked`` the same behind a passphrase, ``both`` certificate and key in one."""

    cert: Path
    key: Path
    locked: Path
    both: Path


def make(folder: Path, name: str = "localhost") -> Certificate:
    """Self-signed, for ``name`` and 127.0.0.1, good for two days."""
    made = Certificate(*(folder / f"{name}-{part}.pem" for part in ("cert", "key", "locked", "both")))
    alternatives = f"subjectAltName=DNS:{name},IP:127.0.0.1"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", str(made.key), "-out", str(made.cert)]
    _openssl("req", "-x509", *curve, "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", alternatives, *files)
    _openssl("pkcs8", "-topk8", "-in", str(made.key), "-out", str(made.locked), "-passout", "pass:secret")
    made.both.write_bytes(made.cert.read_bytes() + made.key.read_bytes())
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
