"""The servers that are compared, each with the fastest memory cache that its configuration offers.

All get the same upstream, one core unless told otherwise, no access log unless that is measured, room for everything, keep-alive without end on
both sides, and their own way of collapsing requests switched on.
"""

import os
import pathlib
import re
import shutil
import subprocess
import textwrap
import time

import machine

STORE_MB = 1024
PATHS = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"


class Peer:
    """A server under test: its name, its program, and how it is told what to do."""

    name = program = ""
    version_pattern = r"(\d+\.\d+(\.\d+)?)"
    # Where its store is not in its own memory.
    files = None
    # Whether it is another server once more, different in what a hit or a pass costs.
    is_variant = False
    # What its configuration says of the access log.
    access_log = None

    def __init__(self, directory, bench, cores=1, store_mb=STORE_MB):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True)
        self.log = self.directory / "stderr.log"
        self.upstream, self.quick_upstream = bench.upstream, bench.quick_upstream
        self.cores, self.store_mb = cores, store_mb
        self.port = machine.free_port()
        self.process = None
        self.ready_seconds = None

    @classmethod
    def find(cls):
        return shutil.which(cls.program, path=PATHS)

    @classmethod
    def version(cls):
        said = subprocess.run([cls.find(), *cls.version_flags], capture_output=True, text=True, check=False)
        found = re.search(cls.version_pattern, said.stdout + said.stderr)
        return found[1] if found else "?"

    version_flags = ("-v",)

    def start(self, core):
        """Starts it, waits until it answers, and notes how long that took."""
        command = self.command()
        began = time.monotonic()
        self.process = machine.start(command, self.log, core, self.environment())
        try:
            machine.until_answer(self.port, "/stored/0/16/ready", self.process)
        except RuntimeError as error:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name}: {error}\n{tail}") from None
        self.ready_seconds = time.monotonic() - began
        return self

    def stop(self):
        machine.stop(self.process)
        shutil.rmtree(self.directory, ignore_errors=True)

    def pids(self):
        return machine.tree(self.process.pid)

    def store_bytes(self):
        """Memory of the processes, and of the files in memory where they store."""
        files = machine.directory_bytes(self.files) if self.files else 0
        return machine.resident_bytes(self.pids()) + files

    def environment(self):
        return {}

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
        return path


class Forebay(Peer):
    name = "forebay"
    program = None
    access_log = "false"

    @classmethod
    def find(cls):
        return cls.program

    version_flags = ("--version",)
    version_pattern = r"forebay (.*)"

    def command(self):
        self.admin = machine.free_port()
        config = self.write("forebay.toml", f"""
            [server]
            listen = "127.0.0.1:{self.port}"
            threads = {self.cores}
            [admin]
            listen = "127.0.0.1:{self.admin}"
            [log]
            access = {self.access_log}
            [store]
            bytes_max = "{self.store_mb}MiB"
            [[upstream]]
            name = "origin"
            url = "http://127.0.0.1:{self.upstream}"
            [[upstream]]
            name = "quick"
            url = "http://127.0.0.1:{self.quick_upstream}"
            [[route]]
            path = "/pass"
            upstream = "quick"
            cache.enabled = false
            [[route]]
            path = "/uncacheable/0"
            upstream = "quick"
            [[route]]
            path = "/"
            upstream = "origin"
            """)
        return [self.program, "serve", "--config", config]


class Trained(Forebay):
    """As benches/train builds it. It takes part where it has been built."""

    name = "forebay, trained"
    is_variant = True

    @classmethod
    def find(cls):
        return cls.program if pathlib.Path(cls.program).exists() else None


class LoggingForebay(Forebay):
    name = "forebay, access log"
    is_variant = True
    access_log = "true"


class Nginx(Peer):
    name = "nginx, sendfile off"
    program = "nginx"
    sendfile = "off"
    access_log = "off"

    def command(self):
        # Its files are in memory: there is no faster store for it.
        self.files = self.directory / "store"
        user = "user root;" if os.getuid() == 0 else ""
        config = self.write("nginx.conf", f"""
            {user}
            daemon off;
            worker_processes {self.cores};
            worker_rlimit_nofile 20000;
            pid {self.directory}/nginx.pid;
            error_log {self.directory}/error.log crit;
            events {{ worker_connections 10000; multi_accept on; }}
            http {{
                access_log {self.access_log.format(self.directory)};
                sendfile {self.sendfile};
                tcp_nodelay on;
                output_buffers 2 128k;
                open_file_cache max=200000 inactive=1h;
                open_file_cache_valid 1h;
                keepalive_requests 1000000000;
                keepalive_timeout 1h;
                client_body_temp_path {self.directory}/body;
                proxy_temp_path {self.directory}/temp;
                fastcgi_temp_path {self.directory}/fastcgi;
                uwsgi_temp_path {self.directory}/uwsgi;
                scgi_temp_path {self.directory}/scgi;
                proxy_cache_path {self.files} levels=1:2 keys_zone=store:64m max_size={self.store_mb}m
                    inactive=1h use_temp_path=off;
                upstream origin {{ server 127.0.0.1:{self.upstream}; keepalive 512; keepalive_requests 1000000000; }}
                upstream quick {{ server 127.0.0.1:{self.quick_upstream}; keepalive 512; keepalive_requests 1000000000; }}
                server {{
                    listen 127.0.0.1:{self.port} backlog=8192;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_buffers 16 16k;
                    proxy_cache store;
                    location /pass/ {{ proxy_pass http://quick; proxy_cache off; }}
                    # With the lock, what turns out to be uncacheable would go through one by one.
                    location /uncacheable/0/ {{ proxy_pass http://quick; }}
                    location / {{
                        proxy_pass http://origin;
                        proxy_cache_lock on;
                        proxy_cache_use_stale updating error;
                        proxy_cache_background_update on;
                    }}
                }}
            }}
            """)
        return [self.find(), "-p", self.directory, "-e", self.directory / "error.log", "-c", config]


class LoggingNginx(Nginx):
    name = "nginx, access log"
    is_variant = True
    access_log = "{}/access.log"


class BufferingNginx(Nginx):
    name = "nginx, access log buffered"
    is_variant = True
    access_log = "{}/access.log combined buffer=64k flush=1s"


class NginxSendfile(Nginx):
    name = "nginx, sendfile on"
    is_variant = True
    sendfile = "on"


class Haproxy(Peer):
    name = "HAProxy"
    program = "haproxy"

    def command(self):
        config = self.write("haproxy.cfg", f"""
            global
                nbthread {self.cores}
                maxconn 9000
                tune.maxrewrite 1024
            defaults
                mode http
                timeout connect 5s
                timeout client 1h
                timeout server 60s
                timeout http-keep-alive 1h
                timeout queue 60s
                http-reuse always
            cache store
                total-max-size {min(self.store_mb, 4095)}
                max-object-size 4194304
                max-age 3600
                process-vary off
            frontend data
                bind 127.0.0.1:{self.port} backlog 8192
                use_backend pass if {{ path_beg /pass/ }}
                use_backend quick if {{ path_beg /uncacheable/0/ }}
                default_backend origin
            backend pass
                server quick 127.0.0.1:{self.quick_upstream} pool-max-conn -1
            backend quick
                http-request cache-use store
                http-response cache-store store
                server quick 127.0.0.1:{self.quick_upstream} pool-max-conn -1
            backend origin
                http-request cache-use store
                http-response cache-store store
                server origin 127.0.0.1:{self.upstream} pool-max-conn -1
            """)
        return [self.find(), "-db", "-f", config]


class Varnish(Peer):
    name = "Varnish"
    program = "varnishd"
    version_flags = ("-V",)

    def command(self):
        policy = self.write("default.vcl", f"""
            vcl 4.1;
            backend default {{ .host = "127.0.0.1"; .port = "{self.upstream}"; }}
            backend quick {{ .host = "127.0.0.1"; .port = "{self.quick_upstream}"; }}
            sub vcl_recv {{
                if (req.url ~ "^/(pass|uncacheable/0)/") {{ set req.backend_hint = quick; }}
                if (req.url ~ "^/pass/") {{ return (pass); }}
            }}
            """)
        parameters = {
            "thread_pools": 1 if self.cores == 1 else 2, "thread_pool_min": 100, "thread_pool_max": 5000,
            "listen_depth": 8192, "timeout_idle": 3600, "thread_pool_stack": "80k",
            # As little as can be said to the log in shared memory.
            "vsl_mask": ",".join(f"-{tag}" for tag in (
                "Begin", "End", "Link", "SessOpen", "SessClose", "ReqStart", "ReqMethod", "ReqURL", "ReqProtocol",
                "ReqHeader", "ReqUnset", "RespProtocol", "RespStatus", "RespReason", "RespHeader", "RespUnset", "ReqAcct",
                "Timestamp", "VCL_call", "VCL_return", "VCL_use", "Hit", "BereqMethod", "BereqURL", "BereqHeader",
                "BereqProtocol", "BerespProtocol", "BerespStatus", "BerespReason", "BerespHeader", "BackendOpen",
                "BackendClose", "BackendReuse", "Storage", "Fetch_Body", "Length", "TTL", "BereqAcct", "Filters")),
        }
        options = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
        jail = ["-j", "none"] if os.getuid() == 0 else []
        return [self.find(), *jail, "-F", "-n", self.directory / "work", "-f", policy, "-a", f"127.0.0.1:{self.port}",
                "-s", f"malloc,{self.store_mb}m", "-T", "none", *options]


class TrafficServer(Peer):
    name = "Traffic Server"
    program = "traffic_server"
    version_flags = ("-V",)

    def command(self):
        self.files = self.directory / "cache"
        for name in ("etc", "log", "run", "cache"):
            (self.directory / name).mkdir()
        modules = next((path for path in ("/usr/lib/trafficserver/modules", "/usr/libexec/trafficserver")
                        if os.path.isdir(path)), "/usr/lib/trafficserver/modules")
        places = {
            "prefix": self.directory, "exec_prefix": self.directory, "bindir": "/usr/bin", "sbindir": "/usr/sbin",
            "sysconfdir": self.directory / "etc", "datadir": "/usr/share", "includedir": "/usr/include",
            "libdir": "/usr/lib", "libexecdir": modules, "localstatedir": self.directory,
            "runtimedir": self.directory / "run", "logdir": self.directory / "log", "cachedir": self.directory / "cache",
        }
        self.write("runroot.yaml", "".join(f"{name}: {place}\n" for name, place in places.items()))
        records = {
            "http.server_ports": f"STRING {self.port}:ip-in=127.0.0.1",
            "admin.user_id": "STRING #-1",
            "exec_thread.autoconfig": "INT 0", "exec_thread.limit": f"INT {self.cores}", "accept_threads": "INT 0",
            "task_threads": "INT 1", "cache.threads_per_disk": "INT 1", "net.listen_backlog": "INT 8192",
            "log.logging_enabled": "INT 0", "diags.debug.enabled": "INT 0", "dump_mem_info_frequency": "INT 0",
            "http.keep_alive_no_activity_timeout_in": "INT 3600", "http.transaction_no_activity_timeout_out": "INT 60",
            "net.connections_throttle": "INT 20000", "net.max_connections_in": "INT 20000",
            "cache.ram_cache.size": f"INT {self.store_mb}M", "cache.ram_cache_cutoff": "INT 8M",
            "cache.ram_cache.algorithm": "INT 1", "cache.min_average_object_size": "INT 4096",
            "http.cache.required_headers": "INT 1", "url_remap.pristine_host_hdr": "INT 1",
            "http.insert_response_via_str": "INT 0", "http.insert_request_via_str": "INT 0",
            # Collapsing: these must agree, and each is off or otherwise by default.
            "cache.enable_read_while_writer": "INT 1", "cache.read_while_writer.max_retries": "INT 1000",
            "cache.read_while_writer_retry.delay": "INT 10",
            "http.background_fill_active_timeout": "INT 0", "http.background_fill_completed_threshold": "FLOAT 0.0",
            "http.cache.open_write_fail_action": "INT 5", "http.cache.max_open_write_retries": "INT 1",
            "http.cache.max_open_read_retries": "INT 1000", "http.cache.open_read_retry_time": "INT 10",
        }
        self.write("etc/records.config", "".join(f"CONFIG proxy.config.{name} {value}\n" for name, value in records.items()))
        quick = "".join(f"map {path} http://127.0.0.1:{self.quick_upstream}{path}\n" for path in ("/pass/", "/uncacheable/0/"))
        self.write("etc/remap.config", f"{quick}map / http://127.0.0.1:{self.upstream}/\n")
        self.write("etc/storage.config", f"{self.directory}/cache {self.store_mb}M\n")
        self.write("etc/cache.config", "url_regex=/pass/ action=never-cache\n")
        for name in ("plugin.config", "hosting.config", "parent.config", "volume.config",
                     "splitdns.config", "socks.config", "ssl_multicert.config"):
            self.write(f"etc/{name}", "")
        for name in ("ip_allow.yaml", "logging.yaml", "sni.yaml", "strategies.yaml"):
            self.write(f"etc/{name}", "")
        self.write("etc/ip_allow.yaml", """
            ip_allow:
              - apply: in
                ip_addrs: 127.0.0.1
                action: allow
                methods: ALL
            """)
        return [self.find(), f"--run-root={self.directory}/runroot.yaml"]

    def environment(self):
        return {"TS_RUNROOT": str(self.directory)}


class Squid(Peer):
    name = "Squid"
    program = "squid"

    def command(self):
        user = ""
        if os.getuid() == 0:
            # It refuses to serve as root.
            user = "cache_effective_user nobody"
            self.directory.chmod(0o777)
        config = self.write("squid.conf", f"""
            {user}
            http_port 127.0.0.1:{self.port} accel defaultsite=a.example no-vhost
            cache_peer 127.0.0.1 parent {self.upstream} 0 no-query no-digest originserver name=origin
            cache_peer 127.0.0.1 parent {self.quick_upstream} 0 no-query no-digest originserver name=quick
            acl is_quick urlpath_regex ^/(pass|uncacheable/0)/
            cache_peer_access quick allow is_quick
            cache_peer_access origin deny is_quick
            never_direct allow all
            http_access allow all
            cache_mem {self.store_mb} MB
            maximum_object_size_in_memory 4 MB
            memory_cache_mode always
            collapsed_forwarding on
            acl is_pass urlpath_regex ^/pass/
            cache deny is_pass
            access_log none
            cache_store_log none
            cache_log {self.directory}/cache.log
            pid_filename {self.directory}/squid.pid
            coredump_dir {self.directory}
            netdb_filename none
            pinger_enable off
            max_filedescriptors 20000
            client_idle_pconn_timeout 1 hour
            shutdown_lifetime 0 seconds
            via off
            forwarded_for delete
            visible_hostname bench
            """)
        # Its name is that of its segments in shared memory, which it leaves behind if it is not given its time.
        service = f"bench{self.port}"
        machine.LEFT_BEHIND.append(f"{service}-*.shm")
        return [self.find(), "-N", "-n", service, "-f", config]


PEERS = (Trained, Nginx, NginxSendfile, Haproxy, Varnish, TrafficServer, Squid)
