"""A hub of our own on this machine, as far as huggingface_hub's client needs one to upload a folder of small files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

TOKEN = "hf_" + "x" * 34
SHA = "1" * 40


class _Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.server.found.paths.append(self.path)
        self.server.found.tokens.append(self.headers.get("Authorization"))
        self._answer(200, {"id": "org/name", "sha": SHA, "private": True, "siblings": []})

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        hub, path = self.server.found, self.path.partition("?")[0]
        hub.paths.append(path)
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.redirect:
            self.send_response(hub.redirect[0])
            self.send_header("Location", hub.redirect[1] + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}" or hub.status != 200:
            self._answer(
                hub.status if hub.status != 200 else 401, {"error": "Invalid credentials in Authorization header"}
            )
        elif path == "/api/repos/create":
            hub.created.append(json.loads(sent))
            owner = hub.created[-1].get("organization")
            self._answer(200, {"url": f"{hub.address}/{owner}/{hub.created[-1]['name']}", "id": "1"})
        elif "/preupload/" in path:
            files = json.loads(sent)["files"]
            self._answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{hub.address}/org/name/commit/{SHA}", "commitOid": SHA, "success": True})
        else:
            self._answer(200, {"warnings": [], "errors": []})


@contextmanager
def hub() -> Iterator[SimpleNamespace]:
    """A server on a port of its own: `address`; what it was asked, `created`, `paths`, `tokens` and `files`; and `status`, which it
    answers with, or a `redirect` (status, address)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    found = SimpleNamespace(
        address=f"http://127.0.0.1:{server.server_port}",
        created=[],
        paths=[],
        tokens=[],
        files={},
        status=200,
        redirect=None,
    )
    server.found = found
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
