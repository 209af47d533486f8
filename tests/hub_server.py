"""A local server that imitates the Hugging Face Hub, as far as reading parts of files needs it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, served from a folder; records the requests and the bytes sent."""

    def __init__(self, repo_id: str, folder: Path):
        self.repo_id, self.folder = repo_id, folder
        self.ranges: list[tuple[str, int, int]] = []
        self.sent = 0
        self.whole: list[str] = []  # files requested without a range

    def entry(self, path: Path) -> dict[str, Any]:
        """A file's entry in the Hub's tree listing."""
        data = path.read_bytes()
        oid = hashlib.sha256(data).hexdigest()
        return {
            "type": "file", "oid": oid[:40], "size": len(data), "path": path.relative_to(self.folder).as_posix(),
            "lfs": {"oid": oid, "size": len(data), "pointerSize": 134},
        }  # fmt: skip

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        path = unquote(urlparse(handler.path).path)
        repo, prefix = re.escape(self.repo_id), f"/{self.repo_id}/resolve/"
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length) if length else b""
        if re.fullmatch(rf"/api/models/{repo}(/revision/.+)?", path):
            if path.endswith("/revision/nowhere"):
                return self.reply(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
            found = {"id": self.repo_id, "modelId": self.repo_id, "sha": COMMIT, "siblings": siblings, "private": False,
                     "downloads": 0, "likes": 0, "tags": [], "createdAt": "2026-01-01T00:00:00.000Z"}  # fmt: skip
            return self.reply(handler, 200, json.dumps(found).encode())
        if re.fullmatch(rf"/api/models/{repo}/paths-info/.+", path):
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else re.findall(r"paths=([^&]+)", unquote(text))
            wanted = [wanted] if isinstance(wanted, str) else wanted
            found_files = [self.entry(p) for name in wanted if (p := self.folder / unquote(name)).is_file()]
            return self.reply(handler, 200, json.dumps(found_files).encode())
        if re.fullmatch(rf"/api/models/{repo}/tree/.+", path):
            entries = [self.entry(p) for p in sorted(self.folder.iterdir())]
            return self.reply(handler, 200, json.dumps(entries).encode())
        if path.startswith(prefix):
            name = path[len(prefix) :].partition("/")[2]
            file = self.folder / name
            if not file.is_file():
                return self.reply(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            data = file.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
            if asked is None:
                if handler.command != "HEAD":
                    self.whole.append(name)
                return self.reply(handler, 200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self.ranges.append((name, start, end))
            self.sent += end - start
            where = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            return self.reply(handler, 206, data[start:end], where)
        return self.reply(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends a response."""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("X-Repo-Commit", COMMIT)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Runs the server; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                hub.answer(self)

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
