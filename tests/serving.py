"""A web server on this machine that behaves as told."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><body>Checking your browser</body></html>"


class Server(ThreadingHTTPServer):
    """Serves files, each request in the next of its file's manners; the last manner stays."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(files)
        self.manners: dict[str, list[str | int]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        manners = self.server.manners.get(name, ["good"])
        manner = manners.pop(0) if len(manners) > 1 else manners[0]
        if isinstance(manner, int):
            self.send_error(manner)
            return
        content = self.server.files[name]
        sent = {"good": content, "cut": content[: len(content) // 2], "altered": content[::-1], "page": PAGE}[manner]
        # Harvard Dataverse's page comes with a status of success.
        self.send_response(202 if manner == "page" else 200)
        self.send_header("Content-Length", str(len(sent if manner == "page" else content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """Serve files until the block ends."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
