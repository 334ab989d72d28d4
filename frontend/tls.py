"""TLS of the listening sockets: certificate and key, versions, and HTTP/2 by ALPN."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from engine.errors import StartError


def context(certfile: str, keyfile: str, *, http2: bool) -> ssl.SSLContext | None:
    """The server's side of TLS 1.2 and newer; None without a certificate.

    Without ``keyfile`` the key is in the certificate's file. Raises StartError, which names what cannot be used.
    """
    if not certfile:
        if keyfile:
            raise StartError("[frontend] keyfile is set and certfile is not: TLS needs both")
        return None
    cert = Path(certfile)
    key = Path(keyfile) if keyfile else cert
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise StartError(f"cannot read {path} for TLS: {error.strerror}") from error
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION

    def no_password() -> NoReturn:  # OpenSSL would ask on the terminal, and wait
        raise StartError(f"the key in {key} is encrypted: give one without a passphrase, readable by this user alone")

    try:
        made.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        paired = error.reason != "KEY_VALUES_MISMATCH"
        why = "they are no certificate and key in PEM" if paired else "they do not belong together"
        raise StartError(f"cannot use {cert} and {key} for TLS: {why}") from error
    made.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return made
