#!/bin/sh
# Checks what can be checked of deploy/ without deploying it: every YAML, JSON and TOML file parses, promtool accepts
# the scrape configuration, the alerts and the dashboard's queries, the alerts' tests pass, every forebay metric that
# is named exists, and the manifests build. A tool that is missing is a failure, because a check that did not run
# proves nothing. kubectl and systemd-analyze alone are optional.
#
# Needs: python3 (3.11 or later) with PyYAML, promtool.
set -eu
cd "$(dirname "$0")/.."

missing=0
for tool in python3 promtool; do
    command -v "$tool" >/dev/null || { echo "deploy/verify.sh: $tool is not installed" >&2; missing=1; }
done
[ "$missing" -eq 0 ] || exit 1
python3 -c 'import yaml, tomllib' || { echo "deploy/verify.sh: PyYAML or Python 3.11 is missing" >&2; exit 1; }

queries=$(mktemp)
trap 'rm -f "$queries"' EXIT

python3 - "$queries" <<'PYTHON'
import json, pathlib, re, sys, tomllib, yaml

read = {
    ".yml": lambda text: list(yaml.safe_load_all(text)),
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".json": json.loads,
    ".toml": tomllib.loads,
    ".py": lambda text: compile(text, "sample", "exec"),
}
deploy = pathlib.Path("deploy")
defined = set(re.findall(r'"(forebay_[a-z_]+)"', "".join(path.read_text() for path in sorted(pathlib.Path("src/telemetry").glob("*.rs")))))
wrong, parsed = [], 0
for path in sorted(deploy.rglob("*")):
    if path.suffix not in read:
        continue
    text = path.read_text()
    try:
        read[path.suffix](text)
        parsed += 1
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        wrong.append(f"{path}: {error}")
    if path.suffix in (".yml", ".json"):
        for name in set(re.findall(r"\bforebay_[a-z_]+", text)):
            if name not in defined and re.sub(r"_(bucket|sum|count)$", "", name) not in defined:
                wrong.append(f"{path}: there is no metric {name}")

# The dashboard's queries as recording rules, so that promtool parses them. Grafana's variables become constants.
rules = []
for panel in json.loads((deploy / "grafana/dashboards/forebay.json").read_text())["panels"]:
    for target in panel.get("targets", []):
        query = re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
        rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": re.sub(r"\$\w+", ".*", query)})
pathlib.Path(sys.argv[1]).write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

for line in wrong:
    print(line, file=sys.stderr)
if wrong or parsed == 0 or not rules:
    sys.exit(1)
print(f"{parsed} files parse, {len(rules)} dashboard queries found")
PYTHON

promtool check config deploy/prometheus/prometheus.yml
promtool check rules deploy/prometheus/alerts.yml "$queries"
promtool test rules deploy/prometheus/alerts_test.yml

if command -v kubectl >/dev/null; then
    kubectl kustomize deploy/kubernetes >/dev/null
    echo "the Kubernetes manifests build"
else
    echo "kubectl is not installed: the Kubernetes manifests were only parsed"
fi

if command -v systemd-analyze >/dev/null; then
    # The binary is not installed where the check runs: any other complaint is a failure.
    complaints=$(systemd-analyze verify deploy/systemd/forebay.service deploy/systemd/*.socket 2>&1 | grep -v 'is not executable' || true)
    [ -z "$complaints" ] || { echo "$complaints" >&2; exit 1; }
    echo "systemd accepts the units"
else
    echo "systemd-analyze is not installed: the units were not checked"
fi
