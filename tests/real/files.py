#!/usr/bin/env python3
"""Real files of all sizes, from a real nginx, through the built program: every byte must arrive.

    tests/real/files.py [target/release/forebay]

An nginx of its own serves a few hundred files (none, one and 200 MB in size, all around powers of two, and
documentation that is found on this machine) with `Cache-Control: max-age=3600`. Each is fetched by miss and by hit,
over HTTP/1.1 and HTTP/2, by eight clients at once, in ranges, and compressed; nginx's log says how often it was asked.

Needs python3, nginx, and a curl that speaks HTTP/2. Uses free ports of 127.0.0.1 and a temporary directory only.
"""

import contextlib
import gzip
import hashlib
import http.client
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20
# The largest body that forebay stores here; larger ones pass through.
BODY_BYTES_MAX = 32 * MIB
LARGEST = 200 * 1000 * 1000
DOCUMENTS_MAX = 200
CLIENTS_AT_ONCE = 8
DEADLINE = 60

NGINX = """
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    log_format asked '$request_method $request_uri $status';
    access_log {dir}/asked.log asked;
    client_body_temp_path {dir}/client; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    default_type application/octet-stream;
    types {{ text/plain txt; }}
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        root {dir}/files;
        expires 3600;
        # Via makes nginx think twice; here it compresses for proxies too.
        location /text/ {{ gzip on; gzip_proxied any; gzip_vary on; gzip_min_length 1; gzip_types text/plain; }}
    }}
}}
"""

FOREBAY = """
[server]
listen = "127.0.0.1:0"
# The connection of one round waits for the next, on a slow machine for minutes.
idle_timeout = "1h"
[admin]
listen = "127.0.0.1:0"
[log]
filter = "warn"
[store]
bytes_max = "2GiB"
[proxy]
inflight_bytes_max = "512MiB"
[coalescing]
body_bytes_max = "{body_bytes_max}B"
[[upstream]]
name = "nginx"
url = "http://127.0.0.1:{port}"
"""


class Wrong(Exception):
    """What arrived is not what should have."""


def expect(condition, *what):
    if not condition:
        raise Wrong(" ".join(str(word) for word in what))


# ---- The files ----------------------------------------------------------------------------------------------------


def sizes():
    """Every size around a power of two up to 4 MiB, and a few large ones."""
    around = {n + d for n in (1 << p for p in range(23)) for d in (-1, 0, 1)}
    return sorted(around | {3, 10 * MIB + 7, BODY_BYTES_MAX - 1, BODY_BYTES_MAX, BODY_BYTES_MAX + 1, LARGEST})


def make_files(root):
    """Makes the files. Returns their contents' digests and sizes by path."""
    noise = random.Random(9111)
    (root / "size").mkdir(parents=True)
    (root / "text").mkdir()
    for size in sizes():
        with open(root / "size" / f"{size}.bin", "wb") as file:
            for start in range(0, size, MIB):
                file.write(noise.randbytes(min(MIB, size - start)))
    found = (p for p in sorted(pathlib.Path("/usr/share/doc").rglob("*")) if p.is_file() and not p.is_symlink())
    for number, document in zip(range(DOCUMENTS_MAX), found):
        with contextlib.suppress(OSError):
            (root / "text" / f"{number}.txt").write_bytes(document.read_bytes())
    for number in range(20):
        (root / "text" / f"made-{number}.txt").write_text(f"line {number}\n" * 4**(number % 9))
    files = {}
    for path in sorted(root.rglob("*.*")):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files["/" + str(path.relative_to(root))] = (digest, path.stat().st_size)
    expect(len(files) >= 90, "only", len(files), "files")
    return files


# ---- The two processes --------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command, **options):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(directory):
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(user + NGINX.format(dir=directory, port=port))
    command = ["nginx", "-p", directory, "-e", directory / "error.log", "-c", directory / "nginx.conf"]
    environment = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin")
    with running(command, env=environment) as process:
        deadline = time.monotonic() + DEADLINE
        while True:
            if process.poll() is not None:
                raise Wrong("nginx ended: " + (directory / "error.log").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            expect(time.monotonic() < deadline, "nginx does not listen")
            time.sleep(0.01)
        yield port


@contextlib.contextmanager
def forebay(binary, directory, upstream_port):
    config = directory / "forebay.toml"
    config.write_text(FOREBAY.format(port=upstream_port, body_bytes_max=BODY_BYTES_MAX))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY")}
    command = [binary, "serve", "--config", config]
    with running(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        greeting = process.stdout.readline()
        found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", greeting)
        expect(found, "forebay did not start:", greeting)
        yield process, int(found.group(1))


# ---- Clients ------------------------------------------------------------------------------------------------------


class Answer:
    """Status, fields, and either the body or its digest."""

    def __init__(self, response, keep):
        self.status, self.fields = response.status, response.headers
        self.length, self.body = 0, bytearray()
        digest = hashlib.sha256()
        while piece := response.read(MIB):
            digest.update(piece)
            self.length += len(piece)
            if keep:
                self.body += piece
        self.digest = digest.hexdigest()
        self.cache = self.fields.get("Cache-Status", "")

    def is_hit(self):
        return "; hit" in self.cache


class Client:
    """One keep-alive connection."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)

    def get(self, target, method="GET", keep=False, **fields):
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        self.connection.request(method, target, headers=headers)
        return Answer(self.connection.getresponse(), keep)


def check_whole(answer, path, files):
    digest, size = files[path]
    expect(answer.status == 200, path, "status", answer.status)
    expect((answer.length, answer.digest) == (size, digest), path, f"differs: {answer.length} of {size} bytes")


def over_http2(port, target):
    """The digest of what curl gets.

    One process for each: with prior knowledge the curl of Debian 12 cannot use a connection twice, not even nginx's.
    """
    command = ["curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", "--max-time", str(DEADLINE),
               "--write-out", "%{stderr}%{http_version}", f"http://127.0.0.1:{port}{target}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        digest = hashlib.sha256()
        while piece := process.stdout.read(MIB):
            digest.update(piece)
        told = process.stderr.read().decode()
    expect((process.returncode, told) == (0, "2"), target, "over HTTP/2:", process.returncode, told)
    return digest.hexdigest()


# ---- The rounds ---------------------------------------------------------------------------------------------------


class Stage:
    def __init__(self, files, port, upstream_port, directory):
        self.files, self.port, self.upstream_port, self.directory = files, port, upstream_port, directory
        self.marks = 0
        self.client = Client(port)
        self.storable = {path for path, (_, size) in files.items() if size <= BODY_BYTES_MAX}

    def root(self, path):
        return self.directory / "files" / path.lstrip("/")

    def asked(self, *parts):
        """How often nginx was asked for what contains these parts. Its log is written after the answer, but in order."""
        self.marks += 1
        mark = f"/size/0.bin?mark-{self.marks}"
        Client(self.upstream_port).get(mark)
        deadline = time.monotonic() + DEADLINE
        while f"GET {mark} " not in (log := (self.directory / "asked.log").read_text()):
            expect(time.monotonic() < deadline, "nginx logs nothing")
            time.sleep(0.001)
        return sum(all(part in line for part in parts) for line in log.splitlines())

    def sample(self, count, largest=4 * MIB):
        """Files of all kinds, always the same."""
        fitting = [path for path, (_, size) in self.files.items() if size <= largest]
        return random.Random(7234).sample(fitting, min(count, len(fitting)))

    def misses(self):
        for path in self.files:
            answer = self.client.get(path)
            check_whole(answer, path, self.files)
            expect("fwd=uri-miss" in answer.cache, path, answer.cache)
            expect(("stored" in answer.cache) == (path in self.storable), path, answer.cache)

    def hits(self):
        for path in self.files:
            answer = self.client.get(path)
            check_whole(answer, path, self.files)
            expect(answer.is_hit() == (path in self.storable), path, answer.cache)
        for path in self.storable:
            expect(self.asked(f"GET {path} ") == 1, path, "was fetched", self.asked(f"GET {path} "), "times")

    def http2_misses(self):
        self.http2("?http2")
        for path in self.storable:
            expect(self.asked(f"GET {path}?http2 ") == 1, path, "was fetched more than once over HTTP/2")

    def http2_hits(self):
        before = self.asked("?http2 ")
        self.http2("?http2")
        fetched, passing = self.asked("?http2 ") - before, len(self.files) - len(self.storable)
        expect(fetched == passing, "nginx was asked for", fetched, "files, not for", passing)

    def http2(self, query):
        with ThreadPoolExecutor(4) as pool:
            digests = pool.map(lambda path: over_http2(self.port, path + query), self.files)
            for path, digest in zip(self.files, digests):
                expect(digest == self.files[path][0], path, "differs over HTTP/2")

    def at_once(self):
        """Several clients ask for the same at once: one fetch, whole answers."""
        paths = self.sample(24) + [f"/size/{n}.bin" for n in (10 * MIB + 7, BODY_BYTES_MAX, LARGEST)]

        def one(path):
            check_whole(Client(self.port).get(path + "?at-once"), path, self.files)

        with ThreadPoolExecutor(CLIENTS_AT_ONCE) as pool:
            for path in paths:
                list(pool.map(one, [path] * CLIENTS_AT_ONCE))
                asked = self.asked(f"GET {path}?at-once ")
                expect(asked == 1 or path not in self.storable, path, "was fetched", asked, "times")

    def ranges(self):
        """Parts of what is stored, and, first of all, of what is not."""
        for path in self.sample(40):
            content, size = self.root(path).read_bytes(), self.files[path][1]
            for query in ("", "?ranges"):
                self.range_of(path + query, content, f"bytes={size}-", None)
                for first, last in {(0, 0), (0, size // 2), (size // 3, size - 1), (size - 1, size + 5)}:
                    if 0 <= first < size:
                        self.range_of(path + query, content, f"bytes={first}-{last}", content[first:last + 1])
                if size > 10:
                    self.range_of(path + query, content, "bytes=-7", content[-7:])

    def range_of(self, target, whole, field, part):
        answer = self.client.get(target, keep=True, Range=field)
        if part is None:
            # RFC 9110, 14.2: what is empty has no range that could be satisfied, and the field may be ignored then.
            expect(answer.status == 416 or not whole, target, field, "status", answer.status)
            return
        expect(answer.status == 206, target, field, "status", answer.status)
        expect(bytes(answer.body) == part, target, field, "is another part")
        expect(answer.fields["Content-Range"].endswith(f"/{len(whole)}"), target, answer.fields["Content-Range"])

    def compressed(self):
        """Both variants by miss and by hit, in turns, and neither for the other."""
        paths = [path for path in self.files if path.startswith("/text/")]
        for is_first in (True, False):
            for path in paths:
                content = self.root(path).read_bytes()
                for coding in ("gzip", "identity"):
                    answer = self.client.get(path + "?coding", keep=True, Accept_Encoding=coding)
                    is_gzip = answer.fields.get("Content-Encoding") == "gzip"
                    expect(is_gzip == (coding == "gzip" and len(content) > 0), path, coding, answer.fields.items())
                    body = bytes(answer.body)
                    expect((gzip.decompress(body) if is_gzip else body) == content, path, coding, "differs")
                    if content:
                        expect("accept-encoding" in answer.fields.get("Vary", "").lower(), path, "has no Vary")
                        expect(answer.is_hit() != is_first, path, coding, answer.cache)

    def without_body(self):
        """HEAD and conditional requests."""
        for path in self.sample(40):
            _, size = self.files[path]
            head = self.client.get(path, method="HEAD")
            expect((head.status, head.length) == (200, 0), path, "HEAD", head.status, head.length)
            # nginx does not say how long a compressed body will be, and forebay repeats what it says.
            told = head.fields.get("Content-Length")
            expect(told == str(size), path, "HEAD says", told)
            for name, field in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
                answer = self.client.get(path, **{name: head.fields[field]})
                expect((answer.status, answer.length) == (304, 0), path, name, answer.status)
                expect(answer.is_hit(), path, name, answer.cache)


def peak_memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) >> 10


def main(binary):
    with tempfile.TemporaryDirectory(prefix="forebay-files-") as name:
        directory = pathlib.Path(name)
        files = make_files(directory / "files")
        total = sum(size for _, size in files.values())
        print(f"{len(files)} files, {total >> 20} MiB, the largest of {LARGEST // 1000 // 1000} MB", flush=True)
        with nginx(directory) as upstream_port, forebay(binary, directory, upstream_port) as (process, port):
            stage = Stage(files, port, upstream_port, directory)
            rounds = [stage.misses, stage.hits, stage.http2_misses, stage.http2_hits, stage.at_once, stage.ranges,
                      stage.compressed, stage.without_body]
            for one in rounds:
                started = time.monotonic()
                one()
                expect(process.poll() is None, "forebay ended")
                print(f"  {one.__name__:<13} {time.monotonic() - started:6.1f} s", flush=True)
            stage.client.connection.close()
            print(f"  peak memory of forebay: {peak_memory(process.pid)} MiB")
            process.send_signal(signal.SIGTERM)
            expect(process.wait(DEADLINE) == 0, "forebay ended with", process.returncode)


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/forebay").resolve())
    except Wrong as wrong:
        sys.exit(f"tests/real/files.py: {wrong}")
