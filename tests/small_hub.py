"""A small Hugging Face hub on loopback: data sets in memory, the ways in which a hub can be slow or dead, and models
that are uploaded."""

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

Files = dict[str, bytes]


def parquet(**columns: list[object] | pyarrow.Array) -> bytes:
    """A Parquet file of these columns."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


class SmallHub(ThreadingHTTPServer):
    """Serves `datasets[name][revision]`, files by path. `refused` maps names to an error code of the hub.

    `asked` holds the names whose newest commit was asked for. `models[name]` are the files of models that were
    uploaded, `commits` the messages with which; `tokens` says which owner a token may write for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets: dict[str, dict[str, Files]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.models: dict[str, Files] = {}
        self.commits: list[str] = []
        self.tokens: dict[str, str] = {}
        self.large: Files = {}
        self.trouble: dict[str, str] = {}
        """By name. silent: nothing is answered; listing: the list of files is not; stall, drip: Parquet files stop in
        the middle, or go on by a byte a time."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        kind, _, rest = path.removeprefix("api/").partition("/")
        if kind == "models":
            return self._json({"id": rest, "sha": "0" * 40}) if rest in self.server.models else self._error(404, "")
        name = "/".join(rest.split("/")[:2])
        action, _, place = rest[len(name) + 1 :].partition("/")
        trouble = self.server.trouble.get(name)
        if trouble == "silent" or (trouble == "listing" and action == "tree"):
            time.sleep(3600)
        if kind != "datasets" or name not in self.server.datasets:
            return self._error(404, "RepoNotFound")
        for revision, files in self.server.datasets[name].items():
            commit = hashlib.sha1(f"{name} {revision} {sorted(files)}".encode()).hexdigest()
            for prefix in (revision, commit):
                if action == "" or place == prefix or place.startswith(f"{prefix}/"):
                    return self._answer(name, action, commit, place[len(prefix) + 1 :], files)
        return self._error(404, "RevisionNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        action, uploads = path.removeprefix("api/"), ("/preupload/", "/commit/", ".git/info/lfs/")
        if action not in ("repos/create", "validate-yaml") and not any(part in path for part in uploads):
            return self.do_GET()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        owner = self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if action == "validate-yaml":
            fault = [{"message": "no such license"}] if b"license: none-such" in content else []
            return self._send(400 if fault else 200, json.dumps({"errors": fault}).encode())
        if owner is None:
            return self._error(401, "")
        if action == "repos/create":
            asked = json.loads(content)
            return self._create(f"{asked['organization']}/{asked['name']}", owner)
        name = path.removeprefix("api/models/").partition(".git/")[0]
        name = "/".join(name.split("/")[:2])
        if name not in self.server.models or not name.startswith(f"{owner}/"):
            return self._error(403, "")
        return self._upload(name, path, content)

    def do_PUT(self) -> None:
        self.server.large[self.path[1:]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(200, b"")

    def _create(self, name: str, owner: str) -> None:
        if not name.startswith(f"{owner}/"):
            return self._error(403, "")
        known = name in self.server.models
        self.server.models.setdefault(name, {})
        return self._send(409 if known else 200, json.dumps({"url": f"{self.server.url}/{name}"}).encode())

    def _upload(self, name: str, path: str, content: bytes) -> None:
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in files}
            answer = [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]
            return self._json({"files": answer})
        if "/commit/" in path:
            return self._commit(name, [json.loads(line) for line in content.splitlines()])
        objects = json.loads(content)["objects"]
        for each in objects:
            each["actions"] = {"upload": {"href": f"{self.server.url}/{each['oid']}"}}
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.models[name]
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                self.server.commits.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.large[value["oid"]]
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/main", "commitOid": "0" * 40})

    def _answer(self, name: str, action: str, commit: str, path: str, files: Files) -> None:
        if name in self.server.refused and (action == "resolve" or self.server.refused[name][1] != "GatedRepo"):
            return self._error(*self.server.refused[name])
        if action in ("", "revision"):
            self.server.asked += [] if action else [name]
            return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        if action == "tree" and (listing := _listing(files, path, recursive="recursive=true" in self.path.lower())):
            return self._json(listing)
        if action == "paths-info":
            return self._json([])
        if action == "resolve" and path in files:
            slow = path.endswith(".parquet") and self.command == "GET"
            return self._file(files[path], commit, self.server.trouble.get(name) if slow else None)
        return self._error(404, "EntryNotFound")

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode())

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", **{"X-Error-Code": code})

    def _file(self, content: bytes, commit: str, trouble: str | None) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = max(start, len(content) // 2) if trouble in ("stall", "drip") else len(content)
        self._send(206 if start else 200, content[start:], sent - start, **headers)
        for byte in content[sent:]:
            time.sleep(3600 if trouble == "stall" else 0.2)
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def _send(self, status: int, content: bytes, sent: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
            self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def _listing(files: Files, folder: str, *, recursive: bool) -> list[dict[str, object]]:
    below = [file for file in files if file.startswith(folder and f"{folder}/")]
    folders = {"/".join(file.split("/")[:depth]) for file in below for depth in range(1, file.count("/") + 1)}
    entries: list[dict[str, object]] = [{"type": "directory", "path": path, "oid": path} for path in sorted(folders)]
    entries += [{"type": "file", "path": file, "size": len(files[file]), "oid": file} for file in below]
    inside = [entry for entry in entries if str(entry["path"]).startswith(folder and f"{folder}/")]
    depth = folder.count("/") + 1 if folder else 0
    return [entry for entry in inside if recursive or str(entry["path"]).count("/") == depth]


@contextmanager
def serving() -> Iterator[SmallHub]:
    """A hub that answers until the block ends."""
    with SmallHub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
