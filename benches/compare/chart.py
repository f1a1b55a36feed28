"""The chart: CPU for each request, a panel for each workload, as SVG without dependencies."""

from html import escape

from report import Results
from workloads import HITS

WIDTH, PANEL_GAP, BAR, BAR_GAP, LEFT, RIGHT = 860, 34, 15, 5, 150, 60
COLUMNS = 2


def svg(raw):
    results, about = Results(raw), raw["about"]
    panels = [workload.name for workload in HITS if workload.name in results.hits]
    width = (WIDTH - PANEL_GAP) / COLUMNS
    parts, top = [], 58
    for start in range(0, len(panels), COLUMNS):
        line = panels[start:start + COLUMNS]
        for column, name in enumerate(line):
            parts += panel(name, results.hits[name], column * (width + PANEL_GAP), top, width)
        top += max(len(results.hits[name]) for name in line) * (BAR + BAR_GAP) + PANEL_GAP + 14
    versions = ", ".join(f"{name.replace(', sendfile off', '')} {version}" for name, version in raw["versions"].items()
                         if name != "nginx, sendfile on")
    title = "CPU-seconds of the server for 100,000 requests (less is better)"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{top:.0f}" fill="#ffffff"/>',
        f'<text x="8" y="22" font-size="16" font-weight="600" fill="#1f2430">{escape(title)}</text>',
        f'<text x="8" y="40" font-size="10" fill="#5b6270">{escape(about["date"])}, {escape(about["machine"])}; '
        f'{escape(versions)}</text>',
        *parts, "</svg>", ""])


def panel(name, servers, x, y, width):
    yield f'<text x="{x + 8:.0f}" y="{y + 12:.0f}" font-weight="600" fill="#1f2430">{escape(name)}</text>'
    most = max(sample["cpu"] for sample in servers.values())
    for number, (server, sample) in enumerate(sorted(servers.items(), key=lambda item: item[1]["cpu"])):
        top = y + 22 + number * (BAR + BAR_GAP)
        length = max(1, (width - LEFT - RIGHT) * sample["cpu"] / most)
        colour = "#d9480f" if server == "forebay" else "#ced4da" if server.startswith(("bare", "raw")) else "#748ffc"
        weight = "600" if server == "forebay" else "400"
        yield (f'<text x="{x + LEFT - 6:.0f}" y="{top + 12:.0f}" text-anchor="end" font-weight="{weight}" fill="#1f2430">'
               f'{escape(server)}</text>')
        yield f'<rect x="{x + LEFT:.0f}" y="{top:.0f}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>'
        yield (f'<text x="{x + LEFT + length + 5:.0f}" y="{top + 12:.0f}" font-weight="{weight}" fill="#1f2430">'
               f'{sample["cpu"]:.2f}</text>')
