"""Stands in for the admin address of an Envoy: it answers with what a test gives it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from citadel_py.config import Address

STATS = {
    "stats": [
        {"name": "sds.a.update_rejected", "value": 1},
        {"name": "sds.a.version_text", "value": "v"},
        {"histograms": {}},
    ]
}
ANSWERS: Mapping[str, tuple[int, bytes]] = {
    "/ready": (503, b"INITIALIZING"),
    "/certs": (200, b'{"certificates": []}'),
    "/config_dump": (200, b'{"configs": []}'),
    "/stats": (200, json.dumps(STATS).encode()),
}


@contextmanager
def envoy_admin(**changed: tuple[int, bytes]) -> Iterator[Address]:
    """An Envoy that is not ready, without certificates and secrets; `certs=(404, b"")` changes an answer."""
    answers = {**ANSWERS, **{f"/{name}": answer for name, answer in changed.items()}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[self.path.partition("?")[0]]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()
