"""The tests' own web servers."""

import contextlib
import http.server
import ssl
import threading
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "localhost.pem"  # with its key: of these servers, and no secret


@contextlib.contextmanager
def served(handler, certificate=CERTIFICATE):
    """A web server on this machine, of https, or of http without a certificate: its address."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments):
            """Whoever hangs up early has their reasons, which the tests look at."""

    with Server(("127.0.0.1", 0), handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
