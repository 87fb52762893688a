"""A hub on the loopback interface that speaks as much of huggingface.co as huggingface_hub needs, and can misbehave."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 16  # what a download writes at a time in tests
LARGE = (".pt", ".onnx", ".safetensors")


@dataclass
class Repo:
    """Files by commit, and branches by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    refuses: tuple[int, str] | None = None  # status and X-Error-Code of every answer

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Move a branch to new content; returns the commit."""
        content = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or of itself."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # break this many answers for a file in the middle
    served: dict[str, bytes] = field(default_factory=dict)  # content that differs from the listed one
    listed: dict[str, int] = field(default_factory=dict)  # sizes that differ from the files'
    fail_uploads: int = 0  # answer this many uploads of large files with 400
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    tokens: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)  # uploaded, by sha256

    def downloads(self, name: str = "") -> list[tuple[str, str | None]]:
        """Path and Range of each file that was asked for."""
        return [
            (path, span)
            for method, path, span in self.log
            if method == "GET" and f"/{name}" in path and "/resolve/" in path
        ]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path within."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def digest(name: str, data: bytes) -> str:
    """The hub's id of a file: sha256 of a large one, git's id of a small one."""
    return sha256(data) if name.endswith(LARGE) else blob_id(data)


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A server for the time of a `with` block."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._file()
        else:
            self._info()

    def do_PUT(self) -> None:
        data = self._body()
        if self.hub.fail_uploads:
            self.hub.fail_uploads -= 1
            return self._answer(400)
        self.hub.large[sha256(data)] = data
        return self._answer(200)

    def do_POST(self) -> None:
        data, path = self._body(), urlsplit(self.path).path
        if path == "/api/repos/create":
            wanted = json.loads(data)
            repo = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
            if not self._admitted(repo, missing_ok=True):
                return None
            created = self.hub.repos.setdefault(repo, Repo())
            if not created.branches:
                created.commit({})
            return self._answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = json.loads(data)["files"]
            modes = [("lfs" if file["path"].endswith(LARGE) else "regular") for file in files]
            answer = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(files, modes, strict=True)
            ]
            return self._answer(200, {"files": answer}) if self._admitted(found[1]) else None
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**thing, "actions": {"upload": {"href": f"{self.hub.url}/upload/{thing['oid']}"}}}
                for thing in json.loads(data)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(found[1], found[2], data)
        return self._answer(404)

    def _commit(self, name: str, branch: str, data: bytes) -> None:
        if not self._admitted(name):
            return None
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.branches[branch]])
        for line in data.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = repo.commit(files, branch)
        return self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _info(self) -> None:
        asked = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/(.+))?", asked)
        if not found:
            return self._answer(404)
        name, kind, revision = found[1], found[2], found[3] or "main"
        if not self._admitted(name):
            return None
        sha = self.hub.repos[name].find(revision)
        if sha is None:
            return self._answer(404, code="RevisionNotFound")
        files = [self._entry(path, data) for path, data in self.hub.repos[name].commits[sha].items()]
        if kind == "tree":
            return self._answer(200, [{"type": "file", "path": f["rfilename"], "oid": f["blobId"], **f} for f in files])
        return self._answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": files})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        size = self.hub.listed.get(path, len(data))
        entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": blob_id(data)}
        if path.endswith(LARGE):
            entry["lfs"] = {"sha256": sha256(data), "oid": sha256(data), "size": size, "pointerSize": 130}
        return entry

    def _file(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name, revision, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
        if not self._admitted(name):
            return None
        sha = self.hub.repos[name].find(revision)
        if sha is None:
            return self._answer(404, code="RevisionNotFound")
        listed = self.hub.repos[name].commits[sha].get(file)
        if listed is None:
            return self._answer(404, code="EntryNotFound")
        data = self.hub.served.get(file, listed)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{digest(file, listed)}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.command == "HEAD":
            return None
        if self.hub.cut.get(file, 0):
            self.hub.cut[file] -= 1
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        self.wfile.write(data[start:])
        return None

    def _admitted(self, name: str, missing_ok: bool = False) -> bool:
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        repo = self.hub.repos.get(name)
        if repo is None and not missing_ok:
            self._answer(401, code="RepoNotFound")
            return False
        if repo is not None and repo.refuses:
            status, code = repo.refuses
            self._answer(status, code=code)
            return False
        return True

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, status: int, content: Any = None, kind: str = "application/json", code: str | None = None
    ) -> None:
        self.hub.log.append((self.command, self.path, None))
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
