"""A web server for the tests: HTTP Range, versions, checksums, and every fault a real one has."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

BLOCK = 2**14


@dataclass
class Site:
    """What the server serves, how it behaves, and what it was asked: (method, path, Range header).

    ranges: sends parts; etags: tells versions; digests: tells checksums (RFC 3230) when asked.
    faults: path -> statuses answered first, 0 for none; cuts: path -> bytes after which the next connections break;
    delay: seconds between blocks of 16 kB. Answers of a program: path -> function of the query.
    """

    folder: Path
    ranges: bool = True
    etags: bool = True
    digests: bool = False
    delay: float = 0.0
    faults: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def ranges_asked(self, path: str) -> list[str | None]:
        """Range headers of the downloads of a path, without the few bytes of a probe."""
        return [part for method, asked, part in self.asked if asked == f"/{path}" and method == "GET"]


@contextmanager
def serve(site: Site, certificate: tuple[Path, Path] | None = None) -> Iterator[Site]:
    """Serve a site on a free port of this machine while the block runs; https with a certificate and its key."""
    handler = type("Handler", (_Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_port}"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        site.address = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not trust the certificate, is no error of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.site.asked.append((self.command, path, self.headers["Range"]))
        if path in self.site.answers:
            self._send_json(self.site.answers[path](parse_qs(urlsplit(self.path).query)))
            return
        faults = self.site.faults.get(path)
        file = self.site.folder / path.lstrip("/")
        fault = faults.pop(0) if faults else 0
        if fault or not file.is_file():
            self._fail(fault or 404)
            return
        self._send_file(path, file.read_bytes(), body)

    def _fail(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _send_file(self, path: str, content: bytes, body: bool) -> None:
        start, stop = self._part(content)
        if start is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = not (self.site.ranges and self.headers["Range"])
        self.send_response(200 if whole else 206)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.site.etags:
            self.send_header("ETag", _etag(content))
        if self.site.digests and "adler32" in (self.headers["Want-Digest"] or ""):
            self.send_header("Digest", f"adler32={zlib.adler32(content):08x}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self._send_body(path, content[start:stop])

    def _part(self, content: bytes) -> tuple[int | None, int]:
        """Start and stop of what is wanted; start None if there is no such part."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if not self.site.ranges or wanted is None or self.headers["If-Range"] not in (None, _etag(content)):
            self.headers.replace_header("Range", "") if "Range" in self.headers else None
            return 0, len(content)
        start = int(wanted[1])
        stop = min(int(wanted[2] or len(content)) + bool(wanted[2]), len(content))
        return (start if start < len(content) else None), stop

    def _send_body(self, path: str, content: bytes) -> None:
        cuts = self.site.cuts.get(path)
        limit = cuts.pop(0) if cuts and len(content) > 1000 else None
        try:
            for start in range(0, len(content[:limit]), BLOCK):
                self.wfile.write(content[:limit][start : start + BLOCK])
                time.sleep(self.site.delay)
        except OSError:  # the other side has enough
            self.close_connection = True
        if limit is not None:
            self.close_connection = True


def _etag(content: bytes) -> str:
    return f'"{zlib.crc32(content):08x}"'


@contextmanager
def xrootd(folder: Path) -> Iterator[tuple[str, str]]:
    """A real XRootD server with a copy of a folder: its addresses for root and for http. Skips where there is none."""
    program = shutil.which("xrootd")
    if program is None:
        pytest.skip("there is no XRootD server here (Debian: apt install xrootd-server)")
    pytest.importorskip("fsspec_xrootd", reason="the extra opendata is not installed")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copytree(folder, home / "eos")
        port, http = _free_ports(2)
        lines = ("all.export /eos", f"oss.localroot {name}", f"all.adminpath {name}", f"all.pidpath {name}")
        lines += (f"xrd.port {port}", f"xrd.protocol http:{http} libXrdHttp.so", "xrootd.chksum adler32")
        (home / "server.cfg").write_text("\n".join((*lines, "")))
        command = [program, "-c", str(home / "server.cfg"), "-l", str(home / "log"), "-n", "test"]
        if os.geteuid() == 0:  # it refuses to run as root
            command += ["-R", "nobody"]
            home.chmod(0o777)
        server = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert any(_listens(port) for _ in range(50)), "the XRootD server did not start"
            yield f"root://127.0.0.1:{port}//eos", f"http://127.0.0.1:{http}/eos"
        finally:
            server.terminate()
            server.wait(10)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _listens(port: int) -> bool:
    """Whether somebody answers on a port of this machine; waits a little if not."""
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", port)) == 0:
            return True
    time.sleep(0.1)
    return False
