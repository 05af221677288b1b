"""A Hub on this machine: as much of the Hub's HTTP interface as pushing and loading models take.

Each commit is kept whole, so that tests can look at what a repository held, and when. `fail` makes requests fail, with
an error that echoes the request's Authorization header, as a careless server might.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TESTS = Path(__file__).parents[1]
TOKEN = "hf_" + "Secret0" * 5
EMPTY = "0" * 40


@dataclass
class Commit:
    """A state of a repository: its files by path, and the SHA-256 of those stored as large files."""

    files: dict[str, bytes] = field(default_factory=dict)
    message: str = ""


@dataclass
class Repository:
    """Commits by id, and the commit of each branch."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=lambda: {EMPTY: Commit()})
    branches: dict[str, str] = field(default_factory=lambda: {"main": EMPTY})

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch or commit id."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        return self.commits[self.branches.get(revision, revision)].files

    @property
    def messages(self) -> list[str]:
        """The messages of all commits, oldest first."""
        return [commit.message for commit in self.commits.values()][1:]


class LoopbackHub(ThreadingHTTPServer):
    """The server; it listens on a free port until closed.

    Attributes:
        repos: Repositories by id.
        log: Method and path of each request.
        fail: Regular expression; requests whose method and path it matches get an error 501,
            which clients do not try again for half a minute, as they do 500.
    """

    daemon_threads = True

    def __init__(self, user: str = "tester") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.user = user
        self.repos: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.fail: str | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def run(self, home: Path, script: str, *arguments: Path) -> str:
        """Runs a script of the tests in a process of its own that talks to this Hub; returns what it printed.

        huggingface_hub reads its settings when it is imported, so this process could not turn to another Hub.

        Args:
            home: The process's `HF_HOME`.
            script: Path of the script below `tests`.
            arguments: Its arguments.
        """
        done = subprocess.run(
            [sys.executable, TESTS / script, *arguments],
            env=os.environ
            | {
                "HF_ENDPOINT": self.url,
                "HF_HOME": str(home),
                "HF_TOKEN": TOKEN,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "hub"))),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@contextlib.contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Runs a Hub while the block lasts."""
    with LoopbackHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "rfilename": path, "size": len(data), "oid": _oid(data)}
    if _is_large(path):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _handle(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {self.path}"
        self.server.log.append(request)
        data = self._body()
        if self.server.fail and re.search(self.server.fail, request):
            echo = f"failed; you sent Authorization: {self.headers.get('Authorization')}"
            self._reply({"error": echo}, 501, {"X-Error-Message": echo})
            return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, self.path):
                getattr(self, method)(data, *match.groups())
                return
        self._missing("EntryNotFound", f"no such endpoint: {request}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _reply(self, answer: object = None, code: int = 200, headers: dict[str, str] | None = None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps({} if answer is None else answer).encode()
        self.send_response(code)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str, message: str) -> None:
        self._reply({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message})

    def _repository(self, name: str) -> Repository | None:
        if name not in self.server.repos:
            self._missing("RepoNotFound", "Repository not found")
        return self.server.repos.get(name)

    def _whoami(self, data: bytes) -> None:
        self._reply({"name": self.server.user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _validate(self, data: bytes) -> None:
        self._reply({"errors": [], "warnings": []})

    def _create(self, data: bytes) -> None:
        asked = json.loads(data)
        name = f"{asked.get('organization') or self.server.user}/{asked['name']}"
        there = name in self.server.repos
        if not there:
            private = asked.get("private") or asked.get("visibility") == "private"  # older and newer clients
            self.server.repos[name] = Repository(private=private)
        self._reply({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if there else 200)

    def _branch(self, data: bytes, name: str, branch: str) -> None:
        if repository := self._repository(name):
            there = branch in repository.branches
            repository.branches.setdefault(branch, repository.branches["main"])
            self._reply({}, 409 if there else 200)

    def _preupload(self, data: bytes, name: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(data)["files"]
        ]
        self._reply({"files": files})

    def _batch(self, data: bytes, name: str) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.server.url}/blobs/{item['oid']}"}},
            }
            for item in json.loads(data)["objects"]
        ]
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        self._reply({"transfer": "basic", "objects": objects}, headers=kind)

    def _blob(self, data: bytes, digest: str) -> None:
        assert hashlib.sha256(data).hexdigest() == digest
        self.server.blobs[digest] = data
        self._reply()

    def _commit(self, data: bytes, name: str, revision: str) -> None:
        if not (repository := self._repository(name)):
            return
        if revision not in repository.branches:
            self._missing("RevisionNotFound", f"no branch {revision}")
            return
        files = dict(repository.files(revision))
        message = ""
        for line in data.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = hashlib.sha1(data + repository.branches[revision].encode()).hexdigest()
        repository.commits[commit] = Commit(files, message)
        repository.branches[revision] = commit
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._reply({"commitUrl": url, "commitOid": commit, "success": True})

    def _info(self, data: bytes, name: str, revision: str | None = None) -> None:
        if not (repository := self._repository(name)):
            return
        if (commit := repository.resolve(revision or "main")) is None:
            self._missing("RevisionNotFound", f"no revision {revision}")
            return
        siblings = [_entry(path, data) for path, data in repository.commits[commit].files.items()]
        self._reply(
            {"_id": "0", "id": name, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings}
        )

    def _tree(self, data: bytes, name: str, revision: str) -> None:
        if repository := self._repository(name):
            commit = repository.resolve(revision)
            if commit is None:
                self._missing("RevisionNotFound", f"no revision {revision}")
                return
            self._reply([_entry(path, content) for path, content in repository.commits[commit].files.items()])

    def _refs(self, data: bytes, name: str) -> None:
        if repository := self._repository(name):
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            self._reply({"branches": branches, "tags": [], "converts": []})

    def _file(self, data: bytes, name: str, revision: str, path: str) -> None:
        if not (repository := self._repository(name)):
            return
        if (commit := repository.resolve(revision)) is None:
            self._missing("RevisionNotFound", f"no revision {revision}")
            return
        headers = {"X-Repo-Commit": commit}
        content = repository.commits[commit].files.get(path)
        if content is None:
            headers |= {"X-Error-Code": "EntryNotFound"}
            self._reply({"error": "Entry not found"}, 404, headers)
            return
        etag = hashlib.sha256(content).hexdigest() if _is_large(path) else _oid(content)
        self._reply(content, headers=headers | {"ETag": f'"{etag}"', "Content-Type": "application/octet-stream"})


_NAME = r"([^/]+/[^/]+)"
_ROUTES = [
    (r"/api/whoami-v2", "_whoami"),
    (r"/api/validate-yaml", "_validate"),
    (r"/api/repos/create", "_create"),
    (rf"/api/models/{_NAME}/branch/(.+)", "_branch"),
    (rf"/api/models/{_NAME}/preupload/(.+)", "_preupload"),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", "_batch"),
    (r"/blobs/(\w+)", "_blob"),
    (rf"/api/models/{_NAME}/commit/(.+)", "_commit"),
    (rf"/api/models/{_NAME}/tree/([^/]+)(?:/.*)?", "_tree"),
    (rf"/api/models/{_NAME}/refs", "_refs"),
    (rf"/api/models/{_NAME}(?:/revision/(.+))?", "_info"),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", "_file"),
]
