"""A web server on this machine that behaves as told."""

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PACKED = gzip.compress(bytes(1 << 22))
PAGE = b"<!DOCTYPE html>\n<html><body>Checking your browser</body></html>"


class Server(ThreadingHTTPServer):
    """Serves files, each request in the next of its file's manners; the last manner stays."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(files)
        self.manners: dict[str, list[str | int]] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.closing = threading.Event()

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
        if manner in ODD:
            ODD[manner](self, content)
            return
        sent = {"good": content, "cut": content[: len(content) // 2], "altered": content[::-1], "page": PAGE}[manner]
        # Harvard Dataverse's page comes with a status of success.
        self.send_response(202 if manner == "page" else 200)
        self.send_header("Content-Length", str(len(sent if manner == "page" else content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_args: object) -> None:
        pass


def _circle(answer: Answer, content: bytes) -> None:
    answer.send_response(302)
    answer.send_header("Location", answer.path)
    answer.end_headers()


def _long(answer: Answer, content: bytes) -> None:
    """Without an end, and without saying so."""
    answer.send_response(200)
    answer.end_headers()
    with suppress(OSError):
        for _ in range(10_000):
            answer.wfile.write(content)
            answer.server.sent += len(content)


def _long_said(answer: Answer, content: bytes) -> None:
    answer.send_response(200)
    answer.send_header("Content-Length", str(10**12))
    answer.end_headers()
    with suppress(OSError):
        answer.wfile.write(content)


def _short(answer: Answer, content: bytes) -> None:
    answer.send_response(200)
    answer.send_header("Content-Length", str(len(content) - 10))
    answer.end_headers()
    answer.wfile.write(content[:-10])


def _drip(answer: Answer, content: bytes) -> None:
    answer.send_response(200)
    answer.send_header("Content-Length", str(len(content)))
    answer.end_headers()
    _slowly(answer, content)


def _drip_headers(answer: Answer, content: bytes) -> None:
    answer.wfile.write(b"HTTP/1.0 200 OK\r\n")
    _slowly(answer, b"X-Filler: " + content.hex().encode())


def _slowly(answer: Answer, content: bytes) -> None:
    """A byte every twentieth of a second, for as long as anyone listens."""
    with suppress(OSError):
        for at in range(len(content)):
            if answer.server.closing.wait(0.05):
                return
            answer.wfile.write(content[at : at + 1])
            answer.wfile.flush()


def _silent(answer: Answer, content: bytes) -> None:
    answer.server.closing.wait(60)


def _packed(answer: Answer, content: bytes) -> None:
    """A few bytes that unpack into many."""
    answer.send_response(200)
    answer.send_header("Content-Encoding", "gzip")
    answer.end_headers()
    answer.wfile.write(PACKED)


ODD: dict[str, Callable[[Answer, bytes], None]] = {
    "circle": _circle,
    "long": _long,
    "long, and says so": _long_said,
    "short": _short,
    "drip": _drip,
    "drip in the headers": _drip_headers,
    "silent": _silent,
    "packed": _packed,
}


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """Serve files until the block ends."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
