"""Who may send, and how it is kept from others: a bearer token, certificates."""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..text import Secret

if TYPE_CHECKING:
    import grpc


def is_allowed(authorization: str, token: Secret | None) -> bool:
    """
    Whether the value of an Authorization header names *token* (RFC 6750, 2.1).

    The time it takes does not tell how much of it is right.
    """
    if token is None:
        return True
    scheme, _, given = authorization.partition(" ")
    ours, theirs = (one.encode("utf-8", "surrogatepass") for one in (token.reveal(), given.strip()))
    return scheme.lower() == "bearer" and hmac.compare_digest(ours, theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """
    PEM files.

    Attributes:
        certificate: Of the receiver, with those between it and its root.
        key: The private key of it.
        client_ca: Who signed the certificates that senders must have; None if they need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def http(self) -> ssl.SSLContext:
        """
        For HTTP.

        Raises:
            OSError: A file cannot be read, or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def grpc(self) -> grpc.ServerCredentials:
        """
        For gRPC.

        Raises:
            OSError: A file cannot be read.
        """
        import grpc

        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        authority = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials([pair], authority, authority is not None)
