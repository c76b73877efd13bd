"""A hub on the loopback interface, whose repositories are dictionaries."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


def revision_name(files: Files) -> str:
    """Return the commit of a repository with these files."""
    listed = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()})
    return hashlib.sha1(listed.encode()).hexdigest()


class LoopbackHub:
    """Repositories by their key, such as "models/owner/name": all commits, the last one is main."""

    def __init__(self) -> None:
        self.commits: dict[str, list[Files]] = {}
        self.requests: list[str] = []
        """Path of each request."""
        self.url = ""

    def push(self, key: str, files: Files) -> str:
        """Make a commit; return its name."""
        self.commits.setdefault(key, []).append(files)
        return revision_name(files)

    def find(self, key: str, revision: str) -> Files | None:
        """Return the files of a commit, if there is one."""
        commits = self.commits.get(key, [])
        named = {revision_name(files): files for files in commits}
        return named.get(revision, commits[-1] if commits and revision == "main" else None)


@contextlib.contextmanager
def serving() -> Iterator[LoopbackHub]:
    """Yield a hub that answers until the block ends."""
    hub = LoopbackHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(send=True)

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, *, send: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(path)
            status, body, headers = _reply(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _reply(hub: LoopbackHub, path: str) -> tuple[int, bytes, dict[str, str]]:
    about = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
    file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    if about:
        key, what, revision = about.groups()
    elif file:
        key, revision, name = file.groups()
        key = key if key.startswith("datasets/") else f"models/{key}"
    files = hub.find(key, revision) if about or file else None
    if files is None:
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
    commit = revision_name(files)
    if file:
        data = files.get(name)
        if data is None:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        etag = hashlib.sha1(data).hexdigest()
        return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    if what == "tree":
        entries = [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
            for n, d in files.items()
        ]
        return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
    name = key.partition("/")[2]
    siblings = [{"rfilename": n, "size": len(d)} for n, d in files.items()]
    body = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
    return 200, json.dumps(body).encode(), {"Content-Type": "application/json"}
