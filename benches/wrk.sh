#!/usr/bin/env bash
# What a hit costs the built program under wrk: CPU-seconds of the server for 100,000 requests, beside a bare nginx that
# serves the same file from disk, for orientation. Both get one thread and one core; wrk has the other.
#
#   benches/wrk.sh [target/release/forebay] [rounds] [seconds]
#
# The two take turns, round after round, so that a change of the machine's mood hits both; medians are reported. The
# default takes a minute. Needs nginx and wrk; uses 127.0.0.1 and a temporary directory only.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/forebay}")
rounds=${2:-5}
seconds=${3:-4}
body_bytes=1024
connections=32
PATH=$PATH:/usr/sbin

for tool in nginx wrk awk curl; do
    command -v "$tool" >/dev/null || { echo "benches/wrk.sh: $tool is not installed" >&2; exit 1; }
done
directory=$(mktemp -d)
started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$directory"
}
trap finish EXIT

on_server=() on_client=()
if command -v taskset >/dev/null && [ "$(nproc)" -ge 2 ]; then
    on_server=(taskset -c 0) on_client=(taskset -c 1)
fi

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$directory/files"
head -c "$body_bytes" /dev/zero | tr '\0' . >"$directory/files/page"
{
    if [ "$(id -u)" -eq 0 ]; then echo 'user root;'; fi
    cat <<CONF
daemon off;
master_process off;
pid $directory/nginx.pid;
error_log $directory/error.log;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    open_file_cache max=100;
    keepalive_requests 1000000000;
    client_body_temp_path $directory/a; proxy_temp_path $directory/b; fastcgi_temp_path $directory/c;
    uwsgi_temp_path $directory/d; scgi_temp_path $directory/e;
    server { listen 127.0.0.1:$port; root $directory/files; expires 3600; }
}
CONF
} >"$directory/nginx.conf"
"${on_server[@]}" nginx -p "$directory" -e "$directory/error.log" -c "$directory/nginx.conf" &
nginx=$!
started+=("$nginx")

cat >"$directory/forebay.toml" <<CONF
[server]
listen = "127.0.0.1:0"
threads = 1
[admin]
listen = "127.0.0.1:0"
[log]
filter = "warn"
access = false
[[upstream]]
url = "http://127.0.0.1:$port"
CONF
"${on_server[@]}" "$binary" serve --config "$directory/forebay.toml" >"$directory/greeting" &
forebay=$!
started+=("$forebay")

# Waits until a command succeeds, for ten seconds.
until_it() {
    for _ in $(seq 200); do
        "$@" && return
        sleep 0.05
    done
    echo "benches/wrk.sh: it never came to be: $*" >&2
    exit 1
}
until_it grep -q 'listens on' "$directory/greeting"
proxied=$(sed -n 's|.*listens on \(http://[^ ]*\).*|\1|p' "$directory/greeting")/page
direct=http://127.0.0.1:$port/page
until_it curl -sfo "$directory/got" "$direct"
curl -sfo "$directory/got" "$proxied"
curl -sfi "$proxied" | grep -qi '^cache-status:.*; hit' || { echo "benches/wrk.sh: no hit" >&2; exit 1; }

# User and system time of a process, in clock ticks. Neither program's name has a space in it.
ticks() {
    awk '{ print $14 + $15 }' "/proc/$1/stat"
}

# One run: requests a second, and CPU-seconds for 100,000 requests.
measure() {
    local pid=$1 url=$2 before after
    before=$(ticks "$pid")
    "${on_client[@]}" wrk -t1 -c"$connections" -d"${seconds}s" "$url" >"$directory/wrk"
    after=$(ticks "$pid")
    if grep -q -e 'Non-2xx' -e 'Socket errors' "$directory/wrk"; then cat "$directory/wrk" >&2; exit 1; fi
    awk -v ticks=$((after - before)) -v hertz="$(getconf CLK_TCK)" \
        '/ requests in / { n = $1 } /^Requests\/sec/ { r = $2 } END { printf "%d %.3f\n", r, ticks / hertz / n * 100000 }' \
        "$directory/wrk"
}

# The median of one column.
median() {
    awk -v column="$2" '{ print $column }' "$1" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

printf '%-7s %26s %26s\n' '' forebay 'nginx, static'
printf '%-7s %12s %13s %12s %13s\n' round requests/s CPU-s/100k requests/s CPU-s/100k
for round in $(seq "$rounds"); do
    a=$(measure "$forebay" "$proxied")
    b=$(measure "$nginx" "$direct")
    echo "$a" >>"$directory/forebay.txt"
    echo "$b" >>"$directory/nginx.txt"
    printf '%-7s %12s %13s %12s %13s\n' "$round" $a $b
done
printf '%-7s %12s %13s %12s %13s\n' median \
    "$(median "$directory/forebay.txt" 1)" "$(median "$directory/forebay.txt" 2)" \
    "$(median "$directory/nginx.txt" 1)" "$(median "$directory/nginx.txt" 2)"
