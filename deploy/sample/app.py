"""A slow application for the compose file: each page takes a second and is fresh for thirty.

It needs nothing but Python. Each page says which request made it, so that one sees what was fetched and what
came from forebay.
"""

import itertools
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RENDERED = itertools.count(1)


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(1)
        body = f"{self.path}, rendered by request {next(RENDERED)}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Cache-Control", "no-store" if self.path.startswith("/live") else "max-age=30")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    # A stampede straight at the application should meet its slowness, not a full backlog.
    request_queue_size = 1024
    daemon_threads = True


if __name__ == "__main__":
    Server(("", 3000), Page).serve_forever()
