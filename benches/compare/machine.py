"""Processes and what they cost: start, stop, pin, CPU time and memory of a process with all its children."""

import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
STARTED = []
# Patterns of segments of shared memory.
LEFT_BEHIND = []


def start(command, log, core=None, env=None):
    """Starts a program in a process group of its own, on one core if one is named."""
    if core is not None and shutil.which("taskset"):
        command = ["taskset", "-c", str(core), *command]
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True, env={**os.environ, **(env or {})})
    STARTED.append(process)
    return process


def stop(process, patience=5.0):
    """Stops what `start` started, and what that has started; politely first."""
    if process in STARTED:
        STARTED.remove(process)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
    try:
        # The group is ours alone: its id is that of the process that we started.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    process.stdout.close()


def stop_all():
    for process in list(STARTED):
        stop(process, patience=1.0)
    for pattern in LEFT_BEHIND:
        for segment in pathlib.Path("/dev/shm").glob(pattern):
            segment.unlink(missing_ok=True)


def tree(pid):
    """The process and all its descendants."""
    children = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo.extend(children.get(found[-1], []))
    return found


def cpu_seconds(pids):
    """User and system time of each process so far: to the nanosecond where the kernel tells it, else to the tick. Processes that have
    ended are left out: a minute after its start, nginx ends the one that loads what it has on disk."""
    return {pid: used for pid in pids if (used := _cpu_seconds(pid)) is not None}


def cpu_seconds_since(before):
    """User and system time of these processes since then, but of those that have ended."""
    return sum(used - before[pid] for pid, used in cpu_seconds(before).items())


def _cpu_seconds(pid):
    try:
        return sum(int(pathlib.Path(task.path, "schedstat").read_text().split()[0]) for task in os.scandir(f"/proc/{pid}/task")) / 1e9
    except FileNotFoundError:
        pass
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pids):
    """Memory that is really there. What several processes share counts once among them."""
    total = 0
    for pid in pids:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        unit = "Rss" if len(pids) == 1 else "Pss"
        total += int(re.search(rf"^{unit}:\s+(\d+)", rollup, re.M)[1]) * 1024
    return total


def directory_bytes(directory):
    """What the files of a directory take on their file system."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_line(process, pattern):
    """What a pattern finds in the lines that a program prints first."""
    for _ in range(50):
        line = process.stdout.readline().decode(errors="replace")
        if not line:
            break
        if found := re.search(pattern, line):
            return found[1]
    raise RuntimeError(f"{process.args}: it did not say {pattern!r}")


def get(port, path, timeout=5.0):
    """One request. Returns head and body, as they came."""
    with socket.create_connection(("127.0.0.1", port), timeout) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: a.example\r\nUser-Agent: forebay-bench\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = stream.recv(65536)
            if not more:
                raise ConnectionError(f"closed within the head: {data[:200]!r}")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(body) < int(length[1]):
            more = stream.recv(65536)
            if not more:
                raise ConnectionError("closed within the body")
            body += more
        return head, body


def until_answer(port, path, process, patience=20.0):
    """Waits for a 200, and returns how long that took."""
    started = time.monotonic()
    while time.monotonic() < started + patience:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}")
        try:
            head, _ = get(port, path, timeout=1.0)
            if head.split()[1] == b"200":
                return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.0005)
    raise RuntimeError(f"it did not answer within {patience:.0f} s")


def description():
    """Cores, processor, kernel."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    return f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release().split('-')[0]}"
