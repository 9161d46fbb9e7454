"""A hub of our own on this machine, as far as `datasets` needs one to read a data set of small files: org/name."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "1" * 40
CARD = "---\nconfigs:\n" + "".join(
    f"- config_name: {config}\n  data_files:\n" + "".join(f"  - split: {one}\n    path: {config}/{one}.jsonl\n" for one in splits)
    for config, splits in (("main", ("train", "test")), ("other", ("train",)))
) + "---\n"  # fmt: skip
FILES = {
    "README.md": CARD.encode(),
    "main/train.jsonl": b"".join(b'{"text": "m%d"}\n' % i for i in range(5)),
    "main/test.jsonl": b'{"text": "t"}\n',
    "other/train.jsonl": b'{"text": "o"}\n',
}


def _entry(path: str) -> dict[str, object]:
    return {"type": "file", "oid": hashlib.sha1(FILES[path]).hexdigest(), "size": len(FILES[path]), "path": path}


class _Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, status: int, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/org/name/tree/"):
            below = path.partition(SHA)[2].strip("/")
            self._answer(200, [_entry(file) for file in FILES if not below or file.startswith(below + "/")])
        elif path.startswith("/api/datasets/org/name"):
            about = {
                "id": "org/name",
                "sha": SHA,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
            }
            self._answer(200, about | {"tags": [], "siblings": [{"rfilename": file} for file in FILES]})
        elif path.startswith("/datasets/org/name/resolve/"):
            file = path.partition("/resolve/")[2].partition("/")[2]
            if file in FILES:
                self._answer(200, FILES[file], ETag=f'"{_entry(file)["oid"]}"', X_Repo_Commit=SHA)
            else:
                self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
        else:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, [_entry(file) for file in sent["paths"] if file in FILES])


@contextmanager
def data_hub() -> Iterator[str]:
    """The address of a server on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
