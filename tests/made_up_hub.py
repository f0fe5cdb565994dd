"""A hub on this machine: an HTTP server with the endpoints that `secateur push` needs, for huggingface_hub's real client.

It keeps repositories in memory: branches, each a list of commits, each all files as bytes. Large files come by git LFS's
protocol, as they do where `hf_xet` is not there (`HF_HUB_DISABLE_XET=1`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "aSecretThatMustStayOne"


@dataclass
class Repository:
    """A model on the hub."""

    private: bool = False
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{".gitattributes": b"*"}]})
    """Name → all files after each commit; the first is the hub's own."""

    @property
    def files(self) -> dict[str, bytes]:
        """The files on the main branch."""
        return self.branches["main"][-1]


class Hub:
    """The server; `with Hub() as hub` lets it run at `hub.address`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """SHA-256 → content, of all that was ever uploaded as a large file."""
        self.asked: list[str] = []
        """Each request, as `POST /api/repos/create`."""
        self.tokens = {TOKEN: "write"}
        """Token → what it may do."""
        self.faults: dict[str, list[Callable[[Any], None]]] = {}
        """Pattern of requests → what happens to the first of them, the second, … instead of what is asked for."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, request: str) -> Callable[[Any], None] | None:
        """What is to go wrong with this request, once."""
        with self._lock:
            self.asked.append(request)
            for pattern, faults in self.faults.items():
                if faults and re.search(pattern, request):
                    return faults.pop(0)
        return None


def refused(status: int, message: str) -> Callable[[Any], None]:
    """An answer of the hub that says no."""
    return lambda handler: handler.answer({"error": message}, status, {"X-Error-Message": message})


def cut(handler: Any) -> None:
    """The connection breaks in the middle of what is sent."""
    handler.rfile.read(1)
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        try:
            if (fault := self.hub.fault_for(f"{self.command} {path}")) is not None:
                if fault is not cut:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault(self)
                return
            self._content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            for method, pattern, respond in _ENDPOINTS:
                if self.command == method and (found := re.fullmatch(pattern, path)):
                    respond(self, *found.groups())
                    return
            self.answer({"error": f"no such endpoint: {self.command} {path}"}, 501)
        except (
            BrokenPipeError,
            ConnectionResetError,
            ValueError,
        ):  # the other side, or a fault, has closed the connection
            self.close_connection = True

    do_GET = do_POST = do_PUT = _serve  # noqa: N815  http.server's names

    @property
    def _may(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def who(self) -> None:
        if self._may is None:
            self.answer({"error": "Invalid user token."}, 401, {"X-Error-Message": "Invalid user token."})
            return
        me = {"name": "ada", "type": "user", "orgs": [{"name": "looms"}]}
        self.answer({**me, "auth": {"accessToken": {"role": self._may}}})

    def create(self) -> None:
        asked = json.loads(self._content)
        repo_id = f"{asked.get('organization') or 'ada'}/{asked['name']}"
        there = repo_id in self.hub.repositories
        if not there:
            private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
            self.hub.repositories[repo_id] = Repository(private=private)
        address = f"{self.hub.address}/{repo_id}"
        if there:
            self.answer({"error": "You already created this model repo", "url": address}, 409)
        else:
            self.answer({"url": address, "id": repo_id})

    def info(self, repo_id: str) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            self.answer({"_id": "1", "id": repo_id, "private": repository.private, "sha": "0" * 40, "siblings": []})

    def branch(self, repo_id: str, name: str) -> None:
        branches = self.hub.repositories[repo_id].branches
        status = 409 if name in branches else 201
        branches.setdefault(name, [branches["main"][-1]])
        self.answer({}, status)

    def tree(self, repo_id: str, revision: str) -> None:
        files = self.hub.repositories[repo_id].branches[revision][-1]
        self.answer(
            [{"type": "file", "path": name, "size": len(each), "oid": _oid(each)} for name, each in files.items()]
        )

    def preupload(self, repo_id: str, revision: str) -> None:
        files = self.hub.repositories[repo_id].branches[revision][-1]
        told = []
        for asked in json.loads(self._content)["files"]:
            large = asked["path"].endswith(".safetensors")
            there = files.get(asked["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _oid(there)
            mode = "lfs" if large else "regular"
            told.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": told})

    def batch(self, _: str) -> None:
        objects: list[dict[str, Any]] = []
        for asked in json.loads(self._content)["objects"]:
            oid = asked["oid"]
            where = {"actions": {"upload": {"href": f"{self.hub.address}/large/{oid}"}}}
            objects.append({**asked, **({} if oid in self.hub.large else where)})
        self.answer({"transfer": "basic", "objects": objects})

    def large(self, oid: str) -> None:
        assert hashlib.sha256(self._content).hexdigest() == oid
        self.hub.large[oid] = self._content
        self.answer({})

    def commit(self, repo_id: str, revision: str) -> None:
        branch = self.hub.repositories[repo_id].branches[revision]
        files = dict(branch[-1])
        for line in self._content.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif change["key"] == "deletedFile":
                del files[value["path"]]
        branch.append(files)
        self.answer(
            {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.hub.address}/{repo_id}/commit/{'1' * 40}"}
        )

    def card(self) -> None:
        self.answer({"errors": [], "warnings": []})


def _oid(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


_ENDPOINTS = (
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.card),
    ("GET", r"/api/models/([^/]+/[^/]+)", _Handler.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/[^/]+", _Handler.info),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", _Handler.branch),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", _Handler.tree),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _Handler.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/large/([0-9a-f]{64})", _Handler.large),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _Handler.commit),
)
