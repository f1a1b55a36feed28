"""The tables: what is to be reached and what was, and the figures behind it."""

from workloads import HITS, STORMS, median

MB = 1_000_000
PASSES = [workload.name for workload in HITS if not workload.cacheable]


def figure(value, digits=2):
    return f"{value:.{digits}f}"


def milliseconds(value):
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


class Results:
    """The medians, by workload and server."""

    def __init__(self, results):
        self.all = results
        self.hits = {
            workload: {server: {what: median(samples, what) for what in samples[0]} for server, samples in servers.items()}
            for workload, servers in results["hits"].items()}

    def cpu(self, workload, server):
        return self.hits.get(workload, {}).get(server, {}).get("cpu")

    def nginx(self, workload):
        """The better of the two."""
        return min((cpu for name in ("nginx, sendfile off", "nginx, sendfile on") if (cpu := self.cpu(workload, name))),
                   default=None)

    def ratio(self, workload, other, to="forebay"):
        """How many times the requests per CPU-second of the other."""
        ours, theirs = self.cpu(workload, to), self.nginx(workload) if other == "nginx" else self.cpu(workload, other)
        return theirs / ours if ours and theirs else None


def row(workload, goal, value, text, met):
    """A line of the goals; without a value it was not measured."""
    verdict = "not measured" if value is None else "met" if met(value) else "**not met**"
    return [workload, goal, "–" if value is None else text(value), verdict]


def times(value):
    return f"{value:.2f} ×"


def hit_goals(results):
    def at_least(workload, other, least, name=None):
        name = name or other
        return row(f"hit, {workload}" if workload != "uncacheable" else "pass (uncacheable)", f"≥ {least} × {name}'s requests per CPU-second",
                   results.ratio(workload, other), times, lambda value: value >= least)

    yield at_least("1 KB", "nginx", 1.25)
    bare = results.ratio("1 KB", "bare hyper")
    yield row("hit, 1 KB", "≤ 1.2 × the CPU of bare hyper", 1 / bare if bare else None, times, lambda value: value <= 1.2)
    one = results.cpu("1 KB", "forebay")
    for workload in ("10,000 keys, uniform", "10,000 keys, Zipf"):
        yield at_least(workload, "HAProxy", 1.25)
        many = results.cpu(workload, "forebay")
        yield row(f"hit, {workload}", "≤ 1.4 × the CPU of one key", many / one if many and one else None, times,
                  lambda value: value <= 1.4)
    yield at_least("16 KB", "nginx", 1.1)
    for other in ("HAProxy", "Varnish", "Traffic Server"):
        yield at_least("128 KB", other, 1.4)
    large = results.ratio("128 KB", "nginx, sendfile on")
    yield row("hit, 128 KB", "≤ 1.2 × the CPU of nginx with sendfile", 1 / large if large else None, times,
              lambda value: value <= 1.2)
    yield at_least("uncacheable", "nginx", 1.0)
    yield at_least("uncacheable", "HAProxy", 1.0)


def core_goals(results):
    cores = results.all["cores"]
    if not cores:
        return
    one, two = (median(cores["forebay", count], "cpu") for count in (1, 2))
    yield row("two cores, not pinned, 256 connections",
              "scales ≥ 1.8 × from one worker thread to two (twice the ratio of requests per CPU-second)",
              2 * one / two, times, lambda value: value >= 1.8)
    # The one that serves more.
    nginx, _ = max((key for key in cores if key[0].startswith("nginx") and key[1] == "own"),
                   key=lambda key: median(cores[key], "asked"), default=(None, None))
    for label, text in (("own", "p99 at 70 % of its own best rate below nginx's at 70 % of its own"),
                        ("common", "p99 at 70 % of nginx's best rate below nginx's")):
        ours = median(cores["forebay", label], "p99") / 1_000
        theirs = median(cores[nginx, label], "p99") / 1_000 if nginx else None
        yield row("two cores, not pinned, 256 connections", text, ours if theirs else None,
                  lambda value, theirs=theirs: f"{value:.2f} ms, nginx {theirs:.2f} ms", lambda value, theirs=theirs: value < theirs)


def wave(results, storm, number=0, server="forebay"):
    """The median of a storm's waves. Failures are never averaged away."""
    runs = [run[number] for run in results.all["storms"].get(storm, {}).get(server, []) if len(run) > number]
    if not runs:
        return None
    return {what: (max(run[what] for run in runs) if what in ("fetched", "failed", "unanswered") else median(runs, what))
            for what in runs[0]}


def told(value):
    lost = value["failed"] + value["unanswered"]
    requests = "1 request" if value["fetched"] == 1 else f"{value['fetched']} requests"
    last = f" · {milliseconds(value['last'])}" if lost < value["clients"] else ""
    return f"{requests}{last}" + (f" · {lost} not served" if lost else "")


def storm_goals(results):
    def goal(number, text, requests, last, which=0):
        name = STORMS[number].name
        served = lambda value: not value["failed"] and not value["unanswered"]  # noqa: E731
        suffix = "" if STORMS[number].times == 1 else (", first time", ", second time")[which]
        return row(name + suffix, text, wave(results, name, which), told, lambda value: (
            served(value) and value["fetched"] <= requests and value["last"] <= last))

    yield goal(0, "1 upstream request, all served within 330 ms", 1, 330)
    yield goal(1, "1 upstream request, all served within 560 ms", 1, 560)
    yield goal(2, "100 upstream requests", 100, float("inf"))
    for number in (3, 4):
        for which in (0, 1):
            yield goal(number, "all served within 260 ms", float("inf"), 260, which)
    paced = STORMS[5].name
    yield row(paced, "1 upstream request, first byte of the body within 5 ms for all who join", wave(results, paced),
              lambda value: f"{value['fetched']} · {value['first_byte']:.1f} ms at most",
              lambda value: value["fetched"] == 1 and value["first_byte"] <= 5 and not value["failed"] + value["unanswered"])


def other_goals(results):
    memory, start = results.all["memory"].get("forebay"), results.all["start"]
    if memory:
        yield row(f"memory, {memory['entries']:,} responses of 1 KB", "≤ 700 bytes each above head and body", memory["overhead"],
                  lambda value: f"{value:.0f} bytes, {memory['kept']:.1%} still stored",
                  lambda value: value <= 700 and memory["kept"] > 0.99)
        growth = memory["after"] - memory["before"]
        yield row("memory after a purge of everything", "falls back (≥ 80 % of the growth is given back)",
                  (memory["after"] - memory["purged"]) / growth,
                  lambda value: f"{value:.0%}: {memory['before'] / MB:.0f} → {memory['after'] / MB:.0f} → "
                                f"{memory['purged'] / MB:.0f} MB", lambda value: value >= 0.8)
    if start:
        yield row("start-up", "answers within 50 ms", start["ready"], milliseconds, lambda value: value < 50)
        for what, title in (("binary", "binary, stripped"), ("idle", "idle RSS")):
            yield row(title, "< 15 MB", start[what] / MB, lambda value: f"{value:.1f} MB", lambda value: value < 15)


def table(header, rows, align_right_from=1):
    marks = ["---" if number < align_right_from else "---:" for number in range(len(header))]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, marks, *rows)) + "\n"


def cpu_table(results):
    """CPU-seconds, and in brackets the times of forebay's."""
    workloads = [workload.name for workload in HITS if workload.name in results.hits]
    rows = []
    for server in dict.fromkeys(server for name in workloads for server in results.hits[name]):
        cells = []
        for name in workloads:
            sample, ours = results.hits[name].get(server), results.cpu(name, "forebay")
            if sample is None:
                cells.append("")
                continue
            is_hit = name in PASSES or sample["fetched"] < 0.001
            flaw = "" if is_hit and not sample["wrong"] and not sample["failed"] else " (!)"
            ratio = "" if server == "forebay" or not ours else f" ({sample['cpu'] / ours:.2f})"
            cells.append(f"{sample['cpu']:.2f}{ratio}{flaw}")
        rows.append([server, *cells])
    return table(["CPU-seconds for 100,000 requests (and × forebay's)", *workloads], rows)


def rate_table(results):
    workloads = [workload.name for workload in HITS if workload.name in results.hits]
    servers = dict.fromkeys(server for name in workloads for server in results.hits[name])
    rows = [[server, *(f"{sample['rate']:,.0f} · {sample['p99'] / 1_000:.2f} ms" if (sample := results.hits[name].get(server)) else ""
                       for name in workloads)] for server in servers]
    return table(["requests/s · p99, closed loop", *workloads], rows)


def storm_table(results):
    columns = [(storm, number) for storm in STORMS if storm.name in results.all["storms"] for number in range(storm.times)]
    servers = dict.fromkeys(server for runs in results.all["storms"].values() for server in runs)
    rows = []
    for server in servers:
        cells = []
        for storm, number in columns:
            value = wave(results, storm.name, number, server)
            text = told(value)
            if storm.over:
                text += f" · first byte {milliseconds(value['first_byte'])}"
            cells.append(text)
        rows.append([server.removesuffix(", sendfile off"), *cells])
    titles = [storm.name + ("" if storm.times == 1 else f", {('first', 'second')[number]} time") for storm, number in columns]
    return table(["requests upstream · last client served", *titles], rows)


def memory_table(results):
    rows = []
    for server, value in results.all["memory"].items():
        ready, idle = results.all["ready"].get(server, (None, None))
        # Who takes all memory at the start does not tell what a response takes.
        overhead = f"{value['overhead']:.0f} bytes" if value["overhead"] > 0 else "not known: taken at the start"
        rows.append([server.removesuffix(", sendfile off"), overhead, f"{value['kept']:.1%}",
                     f"{value['entries'] / value['seconds']:,.0f}",
                     "" if idle is None else f"{idle / MB:.1f} MB", "" if ready is None else milliseconds(ready)])
    return table(["", "overhead for each stored 1 KB response", "still stored", "misses/s while filling", "idle memory",
                  "from start to first answer"], rows)


def cores_table(results):
    cores, rows = results.all["cores"], []
    for name in dict.fromkeys(name for name, _ in cores):
        alone = [cores.get((name, count)) for count in (1, 2)]
        rows.append([name, *("" if samples is None else figure(median(samples, "cpu")) for samples in alone),
                     *("" if samples is None else f"{median(samples, 'rate'):,.0f}" for samples in alone),
                     *(f"{median(cores[name, label], 'asked'):,.0f}/s · {median(cores[name, label], 'p50') / 1_000:.2f} ms · "
                       f"{median(cores[name, label], 'p99') / 1_000:.2f} ms" for label in ("own", "common"))])
    return table(["256 connections, not pinned", "CPU-s per 100,000, one worker", "two workers", "requests/s, one worker",
                  "two workers", "70 % of its own best: rate · p50 · p99", "70 % of nginx's best"], rows)


def logs_table(results):
    rows, cpu = [], {name: median(samples, "cpu") for name, samples in results.all["logs"].items()}
    for name in cpu:
        silent = "forebay" if name.startswith("forebay") else "nginx, sendfile off"
        rows.append([name, figure(cpu[name]), figure(cpu[name] / cpu[silent])])
    return table(["hits of 1 KB", "CPU-seconds for 100,000", "× without a log"], rows)


def origin(raw):
    """Where the figures come from: the command, the machine, the versions."""
    about = raw["about"]
    versions = ", ".join(f"{name} {version}" for name, version in raw["versions"].items() if name != "nginx, sendfile on")
    return (f"`{about['command']}`, {about['date']}, on {about['machine']}, load average {about['load']:.1f} at the start; "
            f"{about['rounds']} interleaved rounds of {about['seconds']:g} s, storms {about['storms']} times. "
            + versions.replace("nginx, sendfile off", "nginx") + ".\n")


def summary(raw):
    """What the README shows: where from, the CPU, the storms, the memory."""
    results = Results(raw)
    parts = [origin(raw)]
    if results.hits:
        parts.append(cpu_table(results))
    if raw["storms"]:
        parts.append(storm_table(results))
    if raw["memory"]:
        parts.append(memory_table(results))
    if raw["logs"]:
        parts.append(logs_table(results))
    return "\n".join(parts)


def markdown(raw):
    results, about = Results(raw), raw["about"]
    parts = [
        f"# forebay and its peers, {about['date']}\n", origin(raw), f"It took {about['took']:.0f} s in all.\n",
        "## What is to be reached\n",
        table(["workload", "goal", "measured", ""],
              [*hit_goals(results), *core_goals(results), *storm_goals(results), *other_goals(results)], 9),
    ]
    if results.hits:
        parts += ["## Hits and passes\n", cpu_table(results), rate_table(results),
                  "64 keep-alive connections from a load that never sleeps, and is the upstream of what is passed, so that no server pays for waking "
                  "it (`--sleep` lets it). (!): not every request was a hit that was answered with 200, as the upstream's "
                  "counters and the statuses tell; such a figure compares nothing.\n"]
    if raw["cores"]:
        parts += ["## Two cores\n", cores_table(results),
                  "The load runs on the same two cores, so that the rates say little about two cores for the server; the CPU "
                  "for each request does. The raw responder has one thread and forebay's rates: so long does it take where the server has next to "
                  "nothing to do.\n"]
    if raw["logs"]:
        parts += ["## Access logs\n", logs_table(results),
                  "One line for each hit, to a file in memory; in all other tables no server keeps an access log. nginx writes each line "
                  "at once, or 64 KiB of them; forebay all that wait, from a thread for that, whose time is counted.\n"]
    if raw["storms"]:
        parts += ["## Storms\n", storm_table(results),
                  f"Clients give up after {about['limit']:g} s (those that join one by one: so long after the last). The last client is timed from the first request on. Requests: the "
                  "most of all rounds. That an answer is not to be shared is known when its head comes: where that takes 200 ms, whoever "
                  "waits for it the first time waits for two answers.\n"]
    if raw["memory"]:
        parts += ["## Memory and start-up\n", memory_table(results),
                  "Growth of resident memory (and of files in memory) divided by the number of responses, less their heads and "
                  "bodies. Still stored: of the responses that were asked for once more.\n"]
    return "\n".join(parts)
