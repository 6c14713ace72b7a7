"""A model hub on loopback: the part of its HTTP API that huggingface_hub uses to fetch a snapshot.

A commit's files and their checksums, small files by git's and large ones by SHA-256 behind a
redirect, ranges, gates; and what goes wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_goodgoodgoodgoodgood"


@dataclass
class Repo:
    """One repository; its commits, the last of which is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool | str = False

    @property
    def main(self) -> str:
        return list(self.commits)[-1]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class Hub:
    """Use as a context manager. `cut`, `broken`, `wrong` and `sizes` are by file name."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    """The first answer with this file ends in its middle."""
    broken: set[str] = field(default_factory=set)
    """This file is not given: 500."""
    wrong: set[str] = field(default_factory=set)
    """Another content of the same size is given."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The size that the hub says instead of the true one."""

    def publish(
        self,
        repo_id: str,
        folder: Path,
        more: Mapping[str, bytes] | None = None,
        gated: bool | str = False,
        commit: str = "",
    ) -> str:
        """Make the files of a folder, and more, a new commit of a repository; its hash.

        Which is `commit`, if that is given.
        """
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        repo = self.repos.setdefault(repo_id, Repo())
        repo.gated = gated
        commit = commit or f"{len(repo.commits) + 1:x}".rjust(40, "c")
        repo.commits[commit] = files | dict(more or {})
        return commit

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def store(self) -> str:
        """Where large files are, for a client another host; it must not be shown the token."""
        return self.url.replace("127.0.0.1", "localhost")

    def got(self) -> list[str]:
        """The files whose content was asked for, in order."""
        lfs = {
            _sha256(content): name
            for repo in self.repos.values()
            for files in repo.commits.values()
            for name, content in files.items()
        }
        paths = [asked.path for asked in self.asked if asked.method == "GET"]
        found = [re.fullmatch(r"/(?:.+/resolve/\w+|lfs)/(.+)", path) for path in paths]
        return [lfs.get(match[1], match[1]) for match in found if match]

    def __enter__(self) -> Self:
        hub, self._lock = self, Lock()

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                with suppress(OSError):
                    hub._answer(self)

            do_HEAD = do_GET  # noqa: N815 - its name there

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                """Keeps test output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- what it answers --------------------------------------------------------------------------

    def _answer(self, client: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(client.path).path)
        token = client.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Asked(client.command, path, client.headers.get("Range", ""), token)
        with self._lock:
            self.asked.append(asked)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._describe(client, found[1], found[2], found[3])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            self._resolve(client, asked, found[1], found[2], found[3])
        elif found := re.fullmatch(r"/lfs/(\w+)", path):
            self._give_large(client, asked, found[1])
        else:
            _refuse(client, 404, "EntryNotFound")

    def _describe(
        self, client: BaseHTTPRequestHandler, repo_id: str, what: str, revision: str
    ) -> None:
        repo = self.repos.get(repo_id)
        if not repo:
            return _refuse(client, 404, "RepoNotFound")
        commit = repo.main if revision == "main" else revision
        if commit not in repo.commits:
            return _refuse(client, 404, "RevisionNotFound")
        if what == "revision":
            facts: Any = {"id": repo_id, "sha": commit, "gated": repo.gated, "siblings": []}
        else:
            facts = [self._entry(*item) for item in repo.commits[commit].items()]
        return _give(client, json.dumps(facts).encode())

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": self._size(name, content)}
        if not _is_large(name):
            return {**entry, "oid": _git_sha1(content)}
        lfs = {"oid": _sha256(content), "size": entry["size"], "pointerSize": 134}
        return {**entry, "oid": "0" * 40, "lfs": lfs}

    def _resolve(
        self, client: BaseHTTPRequestHandler, asked: Asked, repo_id: str, commit: str, name: str
    ) -> None:
        repo = self.repos[repo_id]
        content = repo.commits[commit].get(name)
        if content is None:
            return _refuse(client, 404, "EntryNotFound")
        if repo.gated and asked.token != GOOD_TOKEN:
            return _refuse(client, 403 if asked.token else 401, "GatedRepo")
        named = {"X-Repo-Commit": commit}
        if not _is_large(name):
            return self._give_file(client, asked, name, content, named)
        size, sha256 = str(self._size(name, content)), _sha256(content)
        named |= {"X-Linked-Size": size, "X-Linked-Etag": f'"{sha256}"'}
        return _give(client, b"", 302, **named, Location=f"{self.store}/lfs/{sha256}")

    def _give_large(self, client: BaseHTTPRequestHandler, asked: Asked, sha256: str) -> None:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for name, content in files.items():
                    if _sha256(content) == sha256:
                        return self._give_file(client, asked, name, content, {})
        return _refuse(client, 404, "EntryNotFound")

    def _give_file(
        self,
        client: BaseHTTPRequestHandler,
        asked: Asked,
        name: str,
        content: bytes,
        headers: dict[str, str],
    ) -> None:
        headers = {**headers, "ETag": f'"{_git_sha1(content)}"'}
        if asked.method == "GET" and name in self.broken:
            return _refuse(client, 500, "")
        if asked.method == "GET" and name in self.wrong:
            content = bytes(byte ^ 1 for byte in content)
        start = int(asked.range.removeprefix("bytes=").removesuffix("-") or 0)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        keep = len(content) // 2 if asked.method == "GET" and name in self.cut else None
        self.cut.discard(name) if keep else None
        return _give(client, content[start:], 206 if start else 200, keep, **headers)

    def _size(self, name: str, content: bytes) -> int:
        return self.sizes.get(name, len(content))


def _give(
    client: BaseHTTPRequestHandler,
    body: bytes,
    status: int = 200,
    keep: int | None = None,
    **headers: str,
) -> None:
    """Answer; of the body only the first `keep` bytes, if that is said."""
    client.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        client.send_header(name, value)
    client.end_headers()
    if client.command == "GET":
        client.wfile.write(body[:keep])


def _refuse(client: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _give(client, b"{}", status, **({"X-Error-Code": code} if code else {}))


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
