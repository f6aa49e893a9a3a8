"""
Whether the receiver of this container lives: exit code 0 if ``/healthz`` answers 200.

It asks where the environment or ``hubmeter.toml`` says that the receiver listens. A receiver
without HTTP cannot be asked. One that wants certificates of its clients is asked for its port only.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys

from hubmeter.settings import Settings, load_settings

PATIENCE_S = 4.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> None:
    """Exit with the reason if it does not."""
    settings = load_settings()
    host, _, port = settings.serve_http.rpartition(":")
    if not port:
        sys.exit("the HTTP door is off")
    host = host.strip("[]")
    address = EVERYWHERE.get(host, host), int(port)
    if settings.serve_client_ca:
        socket.create_connection(address, PATIENCE_S).close()
        return
    answer = _asked(settings, *address)
    if answer != http.HTTPStatus.OK:
        sys.exit(f"/healthz answers {answer}")


def _asked(settings: Settings, host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    if settings.serve_cert:
        ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE  # we know whom we ask
        connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=ours)
    connection.request("GET", "/healthz")
    return connection.getresponse().status


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"no answer: {error}")
