"""A stand-in for the Hugging Face Hub on this machine: what huggingface_hub asks of it to publish and to load a model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pt", ".pth")
TOKEN = "hf_" + "secret" * 5


@dataclass
class Repo:
    """Files of every commit, and the commit of every branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = repr((len(self.commits), sorted(files.items()))).encode()
        sha = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the branch ``main``."""
        return self.commits[self.branches["main"]]


class Hub(ThreadingHTTPServer):
    """One user, ``lab``, with one token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status: int | None = None  # what every request is answered with
        self.sent: dict[str, bytes] = {}  # what is sent in place of a file

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.status is not None:
            # As a careless proxy would: with what it was sent.
            self._json({"error": f"sent: {self.headers.get('Authorization')}"}, self.server.status)
            return
        for pattern, handle in ROUTES:
            if (match := re.fullmatch(pattern, path)) is not None:
                handle(self, *match.groups(), body=body)
                return
        self._json({"error": f"no such page: {self.command} {path}"}, 404)

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, **{"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int = 200, /, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        pass

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def owned(self) -> bool:
        if not self.is_owner:
            self._json({"error": "Invalid username or password."}, 401)
        return self.is_owner

    def repo(self, repo_id: str) -> Repo | None:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and not self.is_owner):
            self._json(
                {"error": "Repository not found"}, 404 if self.is_owner else 401, **{"X-Error-Code": "RepoNotFound"}
            )
            return None
        return repo

    def files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.repo(repo_id)
        if repo is None:
            return None
        sha = repo.find(revision)
        if sha is None:
            self._json({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, repo.commits[sha]


def _create(answer: Answer, *, body: bytes) -> None:
    if not answer.owned():
        return
    wanted = json.loads(body)
    repo_id = f"{wanted['organization']}/{wanted['name']}"
    url = f"{answer.server.url}/{repo_id}"
    if repo_id in answer.server.repos:
        answer._json({"error": "You already created this model repo", "url": url}, 409)
        return
    answer.server.repos[repo_id] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    answer._json({"url": url, "name": repo_id})


def _info(answer: Answer, repo_id: str, revision: str | None, *, body: bytes) -> None:
    if (found := answer.files(repo_id, revision or "main")) is not None:
        sha, files = found
        siblings = [{"rfilename": name} for name in files]
        private = answer.server.repos[repo_id].private
        answer._json({"id": repo_id, "sha": sha, "private": private, "siblings": siblings})


def _tree(answer: Answer, repo_id: str, revision: str, *, body: bytes) -> None:
    if (found := answer.files(repo_id, revision)) is not None:
        answer._json([_entry(name, content) for name, content in found[1].items()])


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _branch(answer: Answer, repo_id: str, branch: str, *, body: bytes) -> None:
    if answer.owned() and (repo := answer.repo(repo_id)) is not None:
        status = 409 if branch in repo.branches else 200
        repo.branches.setdefault(branch, repo.branches["main"])
        answer._json({}, status)


def _preupload(answer: Answer, repo_id: str, revision: str, *, body: bytes) -> None:
    if answer.owned() and answer.files(repo_id, revision) is not None:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
        answer._json({"files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]})


def _batch(answer: Answer, repo_id: str, *, body: bytes) -> None:
    if answer.owned():
        objects = json.loads(body)["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": f"{answer.server.url}/large/{one['oid']}?signature=secret"}}
        answer._json({"transfer": "basic", "objects": objects})


def _large(answer: Answer, oid: str, *, body: bytes) -> None:
    if answer.command == "PUT":
        answer.server.large[oid] = body
        answer._send(b"")
    elif "Authorization" in answer.headers:
        answer._json({"error": "a token was sent to another host"}, 400)
    else:
        answer._send(answer.server.sent.get(oid, answer.server.large[oid]))


def _commit(answer: Answer, repo_id: str, branch: str, *, body: bytes) -> None:
    if not answer.owned() or (found := answer.files(repo_id, branch)) is None:
        return
    files = dict(found[1])
    for line in body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            files[value["path"]] = answer.server.large[value["oid"]]
        elif operation["key"] == "deletedFile":
            del files[value["path"]]
    sha = answer.server.repos[repo_id].commit(branch, files)
    answer._json({"commitUrl": f"{answer.server.url}/{repo_id}/commit/{sha}", "commitOid": sha})


def _validate(answer: Answer, *, body: bytes) -> None:
    known = re.search(r"^license: (\S+)$", json.loads(body)["content"], re.M)
    if known is not None and known[1] not in ("mit", "bsd-3-clause", "gpl-3.0", "cc-by-4.0", "other"):
        answer._json({"errors": [{"message": f'"license" must not be {known[1]}'}]}, 400)
    else:
        answer._json({"warnings": []})


def _resolve(answer: Answer, repo_id: str, revision: str, name: str, *, body: bytes) -> None:
    if (found := answer.files(repo_id, revision)) is None:
        return
    sha, files = found
    if name not in files:
        answer._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        return
    content = files[name]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{_blob(content)}"'}
    if name.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        answer.server.large[oid] = content
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        # At another host, as at the hub's own store, which must not be sent the token.
        answer._send(
            b"", 302, Location=f"http://localhost:{answer.server.server_port}/large/{oid}", **headers, **linked
        )
    else:
        answer._send(answer.server.sent.get(name, content), **headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"/api/repos/create", _create),
    (r"/api/validate-yaml", _validate),
    (rf"/api/models/{REPO}(?:/revision/(.+))?", _info),
    (rf"/api/models/{REPO}/tree/([^/]+)", _tree),
    (rf"/api/models/{REPO}/branch/(.+)", _branch),
    (rf"/api/models/{REPO}/preupload/(.+)", _preupload),
    (rf"/api/models/{REPO}/commit/(.+)", _commit),
    (rf"/{REPO}\.git/info/lfs/objects/batch", _batch),
    (r"/large/(\w+)", _large),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", _resolve),
)


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
