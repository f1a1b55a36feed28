"""What is measured: each workload runs on each server in turn, round after round."""

import http.client
import itertools
import json
import shutil
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass

import machine

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 64


@dataclass(frozen=True)
class Hits:
    """Closed-loop requests; what counts is the CPU that the server spends on them. What is not cacheable has an upstream of its
    own, which is the load itself: it is there as long as that is."""

    name: str
    path: str
    keys: int = 1
    draw: str = "each"
    cacheable: bool = True


HITS = (
    Hits("1 KB", "/stored/0/1024/one"),
    Hits("10,000 keys, uniform", "/stored/0/1024/many-{}", 10_000, "uniform"),
    Hits("10,000 keys, Zipf", "/stored/0/1024/many-{}", 10_000, "zipf"),
    Hits("16 KB", "/stored/0/16384/one"),
    Hits("128 KB", "/stored/0/131072/one"),
    Hits("uncacheable", "/uncacheable/0/1024/one", cacheable=False),
    Hits("pass by rule", "/pass/0/1024/one", cacheable=False),
)


@dataclass(frozen=True)
class Storm:
    """Many clients at once; what counts is what reaches the upstream, and when the last one is served."""

    name: str
    path: str
    clients: int
    keys: int = 1
    over: float = 0.0
    # How often the same clients come.
    times: int = 1


STORMS = (
    Storm("500 without Cache-Control, 200 clients", "/failing/300/64/{tag}", 200),
    Storm("cold stampede, 1,000 clients", "/stored/500/1024/{tag}", 1_000),
    Storm("100 keys × 20 clients", "/stored/200/1024/{tag}-{}", 2_000, 100),
    Storm("uncacheable, 200 clients", "/uncacheable/200/1024/{tag}", 200, times=2),
    Storm("uncacheable, head at once, 200 clients", "/late/200/1024/{tag}", 200, times=2),
    Storm("1 MB over 2 s, 50 clients joining", "/paced/2000/1048576/{tag}", 50, over=1_500.0),
)


class Bench:
    """The upstream, the programs, and the way to run one measurement."""

    def __init__(self, tools, directory, quick, spin=True):
        self.tools, self.directory, self.quick, self.spin = tools, directory, quick, spin
        self.seconds, self.rounds = (0.4, 2) if quick else (1.5, 5)
        self.latency_seconds, self.latency_rounds = (0.4, 5) if quick else (1.0, 11)
        self.storm_rounds, self.storm_limit = (1, 2.5) if quick else (3, 12.0)
        self.entries, self.entries_peers = 100_000, 10_000 if quick else 100_000
        self.tags = itertools.count()
        process = machine.start([tools, "upstream"], directory / "upstream.log", LOAD_CORE)
        self.upstream = int(machine.first_line(process, r"listens on .*:(\d+)"))
        # Bound, so that nobody else gets the port, but not listening.
        self.reserved = socket.socket()
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.reserved.bind(("127.0.0.1", 0))
        self.quick_upstream = self.reserved.getsockname()[1]

    def counted(self, prefix):
        """Requests that the upstream has had for paths that begin so."""
        return int(machine.get(self.upstream, f"/counts{prefix}")[1])

    def load(self, port, path, plan, keys=1, draw="each", connections=CONNECTIONS, limit=60.0, check=False, spin=False,
             origin=False, core=LOAD_CORE):
        """Runs the load generator. Returns its report."""
        command = [self.tools, "load", f"--keys={keys}", f"--draw={draw}", f"--connections={connections}",
                   f"--limit={limit}", *(["--check"] if check else []), *(["--spin"] if spin else []),
                   *([f"--origin=127.0.0.1:{self.quick_upstream}"] if origin else []), f"127.0.0.1:{port}", path, *plan]
        if core is not None and shutil.which("taskset"):
            command = ["taskset", "-c", str(core), *command]
        ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                               timeout=limit + 30)
        if ended.returncode:
            raise RuntimeError(f"the load generator failed: {ended.stderr.strip()}")
        return json.loads(ended.stdout)

    def warm(self, server, workload):
        """Fetches every key once, and checks every byte; what is to be passed, for a moment: some must find out that its upstream is
        there now."""
        if not workload.cacheable:
            self.load(server.port, workload.path, ["for", 0.2], origin=True)
        else:
            report = self.load(server.port, workload.path, ["count", workload.keys], workload.keys, check=True,
                               connections=min(CONNECTIONS, workload.keys))
            if report["answered"] < workload.keys or report["failures"]:
                raise RuntimeError(f"{server.name} did not answer all keys of {workload.name!r}: {report}")

    def hits(self, server, workload, connections=CONNECTIONS, core=LOAD_CORE, plan=None):
        """One measurement of CPU for each request."""
        prefix = workload.path.partition("{}")[0]
        pids = server.pids()
        asked, before = self.counted(prefix), machine.cpu_seconds(pids)
        report = self.load(server.port, workload.path, plan or ["for", self.seconds], workload.keys, workload.draw,
                           connections, core=core, spin=self.spin and core is not None, origin=not workload.cacheable)
        used = machine.cpu_seconds_since(before)
        fetched = self.counted(prefix) - asked if workload.cacheable else report["arrived"]
        answered = report["answered"]
        return {
            "cpu": used / answered * 100_000 if answered else float("inf"), "rate": answered / report["seconds"],
            "p50": report["latency_us"]["p50"], "p99": report["latency_us"]["p99"],
            "failed": sum(report["failures"].values()), "fetched": fetched / max(answered, 1),
            "wrong": answered - report["statuses"].get("200", 0),
        }

    def storm(self, server, storm):
        """One storm on a key that nobody has seen. Returns what each wave came to."""
        path = storm.path.replace("{tag}", f"storm-{next(self.tags)}")
        prefix, waves = path.partition("{}")[0], []
        for _ in range(storm.times):
            asked = self.counted(prefix)
            report = self.load(server.port, path, ["storm", storm.over], storm.keys, connections=storm.clients,
                               limit=self.storm_limit + storm.over / 1_000, check=True)
            waves.append({
                "fetched": self.counted(prefix) - asked, "last": report["first_to_last_us"] / 1_000,
                "median": (report["latency_us"]["p50"] or 0) / 1_000, "p99": (report["latency_us"]["p99"] or 0) / 1_000,
                "first_byte": (report["later_first_byte_us"]["max"] or 0) / 1_000,
                "failed": sum(report["failures"].values()), "unanswered": report["unanswered"],
                "clients": storm.clients,
            })
        return waves

    def memory(self, server, entries):
        """What each of so many small stored responses takes, and what is left after a purge."""
        path = "/stored/0/1024/memory-{}-{{}}".format(next(self.tags))
        head, body = machine.get(self.upstream, path)
        payload = len(head) + 4 + len(body)
        time.sleep(0.3)
        before = server.store_bytes()
        report = self.load(server.port, path, ["count", entries], entries, limit=60.0)
        time.sleep(1.0)
        after = server.store_bytes()
        asked = self.counted(path.partition("{}")[0])
        # A sample of them, once more: what is not stored any more costs nothing.
        again = self.load(server.port, path, ["count", entries // 10], entries, limit=30.0)
        kept = 1 - (self.counted(path.partition("{}")[0]) - asked) / max(again["answered"], 1)
        result = {"before": before, "after": after, "payload": payload, "kept": kept, "entries": entries,
                  "answered": report["answered"], "seconds": report["seconds"],
                  "overhead": (after - before) / entries - payload}
        if hasattr(server, "admin"):
            result["purged"] = self.purge(server, before + (after - before) / 10)
        return result

    @staticmethod
    def purge(server, enough):
        """Purges everything, and waits for memory to come back: for 12 seconds, or until no more than `enough` is taken."""
        connection = http.client.HTTPConnection("127.0.0.1", server.admin, timeout=5)
        connection.request("POST", "/purge", json.dumps({"everything": True}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"the purge was answered {answer.status}")
        for _ in range(24):
            time.sleep(0.5)
            left = server.store_bytes()
            if left <= enough:
                break
        return left


def median(samples, what):
    return statistics.median(sample[what] for sample in samples)
