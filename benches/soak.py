#!/usr/bin/env python3
"""Soak: minutes of mixed load while everything around the gateway fails, then an audit of the books.

    cargo build --release
    benches/soak.py --binary target/release/portcullis --minutes 10

Needs Python 3.9, openssl, h2load and wrk, and nothing else. Everything runs on 127.0.0.1, on free
ports, in a temporary folder. Kinds of load (each marks its requests with a User-Agent of its own, so
that records can be counted against the load generators' own books):

    h1, h2        h2load with good tokens, over plain HTTP/1.1 and TLS with HTTP/2
    wrk           wrk on the open route
    bad           h2load with tokens of a wrong signature, from an address of their own
    denied        h2load with tokens that the policy refuses
    large         bodies beyond the route's bound
    limited       more than a limit allows
    gone          clients that hang up: before the answer, in the middle of their own body, and in the
                  middle of the answer

The upstream and the issuer are killed and started again every 20 s; the configuration is reloaded
every 3 s, by SIGHUP, by the admin listener and by the watcher in turn, with a broken one now and then;
the audit file is moved away every 10 s. At the end it must be true that:

    - the process lives, and its log tells of no panic
    - memory stays level: the last third of the minutes is not above the second third
    - a minute after the load, file descriptors and threads are back
    - each request that a load generator counts has exactly one record, none were dropped, no request
      id occurs twice, and nothing is counted as under way

Exit code 0 if all of it is, else 1; 2 when a program is missing.
"""

import argparse
import asyncio
import base64
import collections
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# What the admin listener asks for: a secret of this run, which the gateway takes from its environment.
os.environ["BENCH_ADMIN_TOKEN"] = os.urandom(16).hex()
ADMIN = {"authorization": "Bearer " + os.environ["BENCH_ADMIN_TOKEN"]}
# The most that memory may grow from the second third of the run to the last.
GROWTH_RATIO, GROWTH_BYTES = 1.10, 8 << 20
SETTLE = 60
# What a broken configuration calls its upstream.
BROKEN_UPSTREAM = "nowhere"


# --- the services around the gateway, each a process of its own so that it can be killed ---

class Origin(asyncio.Protocol):
    """An HTTP/1.1 service: /slow streams for a second, everything else is answered at once."""

    def connection_made(self, transport):
        self.transport, self.buffer, self.skip, self.busy = transport, b"", 0, False

    def data_received(self, data):
        self.buffer += data
        self.work()

    def work(self):
        while not self.busy:
            if self.skip:
                used = min(self.skip, len(self.buffer))
                self.buffer, self.skip = self.buffer[used:], self.skip - used
                if self.skip:
                    return
                self.answer()
                continue
            head, mark, rest = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            self.buffer, self.path = rest, head.split(b" ", 2)[1]
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            self.skip = int(length.group(1)) if length else 0
            if not self.skip:
                self.answer()

    def answer(self):
        if self.path.startswith(b"/slow"):
            self.busy = True
            self.transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            asyncio.get_running_loop().create_task(self.drip())
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n" + b"x" * 64)

    async def drip(self):
        for _ in range(10):
            if self.transport.is_closing():
                return
            self.transport.write(b"400\r\n" + b"y" * 1024 + b"\r\n")
            await asyncio.sleep(0.1)
        self.transport.write(b"0\r\n\r\n")
        self.busy = False
        self.work()


class Keys(Origin):
    """An issuer: discovery and one key set, which is read anew from its file."""

    def answer(self):
        with open("jwks.json" if b"jwks" in self.path else "discovery.json", "rb") as file:
            body = file.read()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: max-age=1\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body))


def serve(kind, port):
    async def main():
        loop = asyncio.get_running_loop()
        made = {"origin": Origin, "issuer": Keys}[kind]
        server = await loop.create_server(made, "127.0.0.1", port, reuse_address=True)
        await server.serve_forever()
    asyncio.run(main())


class Service:
    def __init__(self, kind, port, folder):
        self.kind, self.port, self.folder, self.process, self.kills = kind, port, folder, None, 0

    def start(self):
        command = [sys.executable, os.path.abspath(__file__), "--serve", self.kind, str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.DEVNULL)
        wait_for(lambda: connects(self.port), f"the {self.kind}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.kills += 1


# --- tokens, with openssl alone ---

def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def openssl(*arguments, data=None):
    return subprocess.run(["openssl", *arguments], input=data, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout


def make_key(path):
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", path)


def jwk(path):
    text = openssl("rsa", "-in", path, "-noout", "-modulus").decode()
    return {"kty": "RSA", "kid": "one", "alg": "RS256", "use": "sig",
            "n": b64(bytes.fromhex(text.split("=", 1)[1].strip())), "e": "AQAB"}


def token(key, issuer, subject, scope):
    head = {"alg": "RS256", "kid": "one", "typ": "at+jwt"}
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": "urn:soak", "client_id": "soak", "iat": now,
              "exp": now + 7200, "jti": os.urandom(8).hex(), "scope": scope}
    text = ".".join(b64(json.dumps(part).encode()) for part in (head, claims))
    return text + "." + b64(openssl("dgst", "-sha256", "-sign", key, data=text.encode()))


# --- the gateway ---

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def wait_for(condition, what, patience=30):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"soak: waited {patience} s for {what}")
        time.sleep(0.05)


POLICY = """package gate

default allow := false

allow if "read" in input.identity.scopes
# round %d
"""


def configuration(ports, turn):
    limits = {"few": {"by": "subject", "rate": "5/s", "burst": 5},
              "address": {"by": "address", "rate": "1000000/s", "burst": 1000000}}
    routes = [
        {"name": "guarded", "path": "/guarded", "authn": ["soak"], "policy": "gate",
         "limits": ["address"], "upstream": "origin", "labels": {"turn": str(turn)}},
        {"name": "limited", "path": "/limited", "authn": ["soak"], "policy": "gate",
         "limits": ["few"], "upstream": "origin"},
        {"name": "slow", "path": "/slow", "authn": ["anonymous"], "policy": "public",
         "upstream": "origin"},
        {"name": "open", "path": "/open", "authn": ["anonymous"], "policy": "public",
         "upstream": "origin", "bounds": {"max_body": "1KiB"}},
    ]
    return {
        "workers": 2,
        "trusted_proxies": ["127.0.0.1/32"],
        "listeners": {
            "plain": {"address": f"127.0.0.1:{ports['plain']}", "plaintext": True},
            "tls": {"address": f"127.0.0.1:{ports['tls']}",
                    "tls": {"certificates": [{"chain": "server.pem", "key": "server.key"}]}},
        },
        "issuers": {"soak": {
            "issuer": f"http://127.0.0.1:{ports['issuer']}", "keys": {"discovery": True},
            "audiences": ["urn:soak"], "algorithms": ["RS256"],
            # Fetched often, so that the dead issuer is met.
            "refresh": {"interval": "2s", "minimum": "1s"}}},
        "policies": {"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}},
        "limits": limits,
        # Every eighth turn the pools are made anew.
        "upstreams": {"origin": {"endpoints": [f"http://127.0.0.1:{ports['origin']}"],
                                 "connect_timeout": f"{1000 + turn // 8 % 2}ms"}},
        "routes": routes,
        "audit": {"sink": {"file": "audit.jsonl"}},
        "admin": {"address": f"127.0.0.1:{ports['admin']}", "token": "env:BENCH_ADMIN_TOKEN"},
    }


class Gateway:
    def __init__(self, binary, folder, ports):
        self.folder, self.ports, self.turn = folder, ports, 0
        self.reloads = collections.Counter()
        self.write()
        self.log = open(os.path.join(folder, "log.jsonl"), "wb")
        self.process = subprocess.Popen([binary, "run", "--config", "gateway.yaml"], cwd=folder,
                                        stdout=subprocess.DEVNULL, stderr=self.log)
        wait_for(lambda: self.process.poll() is not None or self.admin("GET", "/ready")[0] == 200,
                 "readiness")
        if self.process.poll() is not None:
            raise SystemExit("soak: the gateway did not start: "
                             + open(self.log.name, errors="replace").read())

    def write(self, broken=False):
        with open(os.path.join(self.folder, "gate.rego"), "w") as file:
            file.write(POLICY % (self.turn // 5))
        document = configuration(self.ports, self.turn)
        if broken:
            document["routes"][0]["upstream"] = BROKEN_UPSTREAM
        # JSON is YAML. Moved into place, so that the watcher never sees half of it.
        fresh = os.path.join(self.folder, ".fresh")
        with open(fresh, "w") as file:
            json.dump(document, file, indent=1)
        os.rename(fresh, os.path.join(self.folder, "gateway.yaml"))

    def admin(self, method, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=60)
        try:
            connection.request(method, path, headers=ADMIN)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def reload(self):
        self.turn += 1
        how = ("SIGHUP", "admin", "watcher")[self.turn % 3]
        broken = self.turn % 10 == 0
        self.write(broken)
        if how == "SIGHUP":
            self.process.send_signal(signal.SIGHUP)
        elif how == "admin":
            status, text = self.admin("POST", "/reload")
            if status != (422 if broken else 200):
                self.reloads["wrong"] += 1
                print(f"soak: /reload answered {status}: {text[:300]}", file=sys.stderr)
        self.reloads["broken" if broken else how] += 1

    def metric(self, name):
        found = re.search(rf"(?m)^{re.escape(name)} (\S+)$", self.admin("GET", "/metrics")[1])
        return float(found.group(1)) if found else None

    def status(self, field):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(rf"(?m)^{field}:\s+(\d+)", file.read()).group(1))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


# --- the loads: each returns how many records it must have caused, at least and at most ---

class Load(threading.Thread):
    def __init__(self, name, once, until):
        super().__init__(name=name, daemon=True)
        self.once, self.until = once, until
        self.least = self.most = 0
        self.outcomes, self.trouble = collections.Counter(), []

    def run(self):
        while time.monotonic() < self.until:
            try:
                self.once(self)
            except Exception as error:  # the books still have to be told of it
                self.trouble.append(repr(error))
                time.sleep(0.2)

    def count(self, least, most=None):
        self.least += least
        self.most += least if most is None else most


def h2load(url, requests, clients, rate, *more):
    def once(load):
        command = ["h2load", "-n", str(requests), "-c", str(clients), f"--rps={rate}",
                   "-H", f"user-agent: soak-{load.name}", *more, url]
        text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=300).stdout.decode(errors="replace")
        total = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, "
                          r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
        classes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
        if not total or not classes:
            load.trouble.append(text[-300:])
            return
        answered = sum(map(int, classes.groups()))
        # What was sent without an answer may or may not have arrived.
        load.count(answered, max(answered, int(total.group(2))))
        for name, number in zip(("2xx", "3xx", "4xx", "5xx"), classes.groups()):
            load.outcomes[name] += int(number)
        load.outcomes["errored"] += int(total.group(6)) + int(total.group(7))
    return once


def wrk(url, connections, seconds, script):
    def once(load):
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "-s", script,
                   "-H", f"user-agent: soak-{load.name}", url]
        text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=300).stdout.decode(errors="replace")
        done = re.search(r"(\d+) requests in", text)
        if not done:
            load.trouble.append(text[-300:])
            return
        # wrk cuts what is under way at its end: one request for each connection.
        load.count(int(done.group(1)), int(done.group(1)) + connections)
        errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        bad = int(errors.group(1)) if errors else 0
        load.outcomes["2xx"] += int(done.group(1)) - bad
        load.outcomes["5xx"] += bad
        sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        if sockets:
            load.outcomes["errored"] += sum(map(int, sockets.groups()))
    return once


def head(method, path, load, *more):
    lines = [f"{method} {path} HTTP/1.1", "Host: soak.test", f"User-Agent: soak-{load.name}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def large(port):
    def once(load):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(head("POST", "/open", load, "Content-Length: 4096", "Connection: close"))
            try:
                client.sendall(b"z" * 4096)
            except OSError:
                pass  # the refusal came first
            load.count(1)
            answer = client.recv(12)
            load.outcomes[answer[9:10].decode() + "xx" if answer else "errored"] += 1
        time.sleep(0.02)
    return once


def gone(port):
    def once(load):
        kind = random.choice(("before", "body", "answer"))
        # An address of its own, one of very many.
        by = "X-Forwarded-For: 10.%d.%d.%d" % tuple(random.randrange(256) for _ in range(3))
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            if kind == "body":
                client.sendall(head("POST", "/open", load, by, "Content-Length: 900") + b"z" * 100)
            else:
                client.sendall(head("GET", "/slow", load, by))
            if kind == "answer":
                client.recv(64)
        load.count(1)
        load.outcomes[kind] += 1
        time.sleep(0.02)
    return once


# --- the books ---

class Records(threading.Thread):
    """Moves the audit file away again and again, and counts what is in it."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.ids, self.twice, self.torn = folder, set(), 0, 0
        self.by_agent, self.outcomes = collections.Counter(), collections.Counter()
        self.moved, self.end = 0, threading.Event()

    def run(self):
        while not self.end.wait(10):
            self.move()

    def move(self):
        live = os.path.join(self.folder, "audit.jsonl")
        away = f"{live}.{self.moved}"
        if not os.path.exists(live):
            return
        os.rename(live, away)
        self.moved += 1
        # The gateway opens the file anew within a second, and writes into the old one until then.
        time.sleep(3)
        self.read(away)
        os.remove(away)

    def read(self, path):
        with open(path, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    self.torn += 1
                    continue
                identity = hash(record["request_id"])
                self.twice += identity in self.ids
                self.ids.add(identity)
                self.by_agent[record["user_agent"] or ""] += 1
                self.outcomes[record["outcome"]] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/portcullis")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=1500, help="requests a second, all kinds together")
    parser.add_argument("--keep", action="store_true", help="keep the folder with log and configuration")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve[0], int(arguments.serve[1]))
    for program in ("openssl", "h2load", "wrk"):
        if not shutil.which(program):
            print(f"soak: {program} is not installed", file=sys.stderr)
            return 2
    binary = os.path.abspath(arguments.binary)
    if not os.access(binary, os.X_OK):
        print(f"soak: {binary} is not there: cargo build --release", file=sys.stderr)
        return 2
    folder = tempfile.mkdtemp(prefix="portcullis-soak-")
    services = []
    gateway = None
    try:
        ports = {name: free_port() for name in ("plain", "tls", "origin", "issuer", "admin")}
        issuer = f"http://127.0.0.1:{ports['issuer']}"
        path = lambda name: os.path.join(folder, name)
        make_key(path("issuer.pem"))
        make_key(path("forger.pem"))
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-days", "2", "-subj", "/CN=soak", "-addext", "subjectAltName=DNS:soak.test,IP:127.0.0.1",
                "-keyout", path("server.key"), "-out", path("server.pem"))
        with open(path("jwks.json"), "w") as file:
            json.dump({"keys": [jwk(path("issuer.pem"))]}, file)
        with open(path("discovery.json"), "w") as file:
            json.dump({"issuer": issuer, "jwks_uri": issuer + "/jwks"}, file)
        with open(path("wrk.lua"), "w") as file:
            file.write("function delay() return 10 end\n")
        bearer = lambda key, subject, scope: (
            "authorization: Bearer " + token(path(key), issuer, subject, scope))
        good = bearer("issuer.pem", "alice", "read write")
        services = [Service("origin", ports["origin"], folder), Service("issuer", ports["issuer"], folder)]
        for service in services:
            service.start()
        gateway = Gateway(binary, folder, ports)
        fine = soak(arguments, folder, ports, services, gateway, good, bearer, path)
    finally:
        for process in [gateway and gateway.process] + [service.process for service in services]:
            if process and process.poll() is None:
                process.kill()
                process.wait()
        if arguments.keep:
            print(f"soak: kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if fine else 1


def soak(arguments, folder, ports, services, gateway, good, bearer, path):
    plain, tls = f"http://127.0.0.1:{ports['plain']}", f"https://127.0.0.1:{ports['tls']}"
    started = time.monotonic()
    until = started + arguments.minutes * 60
    # A share of the rate for each h2load kind, on four connections; 15 s a round.
    rate = max(1, arguments.rate // 5 // 4)
    requests = rate * 4 * 15
    bad = bearer("forger.pem", "mallory", "read")
    loads = [
        Load("h1", h2load(plain + "/guarded", requests, 4, rate, "--h1", "-H", good), until),
        Load("h2", h2load(tls + "/guarded", requests, 4, rate, "-m", "4", "-H", good), until),
        Load("bad", h2load(tls + "/guarded", requests // 4, 4, max(1, rate // 4), "-m", "2",
                           "-H", bad, "-H", "x-forwarded-for: 192.0.2.66"), until),
        Load("denied", h2load(plain + "/guarded", requests // 4, 4, max(1, rate // 4), "--h1", "-H",
                              bearer("issuer.pem", "bob", "write")), until),
        Load("limited", h2load(tls + "/limited", requests // 4, 4, max(1, rate // 4), "-m", "2",
                               "-H", bearer("issuer.pem", "carol", "read")), until),
        Load("wrk", wrk(plain + "/open", 4, 15, path("wrk.lua")), until),
        Load("large", large(ports["plain"]), until),
        Load("gone", gone(ports["plain"]), until),
    ]
    # What begins with the first request (the audit's thread and file) belongs to the start value.
    with socket.create_connection(("127.0.0.1", ports["plain"]), 10) as client:
        client.sendall(head("GET", "/open", argparse.Namespace(name="first"), "Connection: close"))
        while client.recv(4096):
            pass
    gateway.admin("POST", "/reload")
    wait_for(lambda: gateway.metric("portcullis_audit_records_written_total") == 1, "the first record")
    start = {"fds": gateway.descriptors(), "threads": gateway.status("Threads")}
    records = Records(folder)
    records.start()
    for load in loads:
        load.start()
    memory, next_minute, next_reload, next_kill = [], started + 60, started + 3, started + 20
    minutes = [gateway.status("VmRSS") * 1024]
    print(f"soak: {arguments.minutes:g} minutes, pid {gateway.process.pid}, start: "
          f"RSS {minutes[0] >> 20} MiB, {start['fds']} fds, {start['threads']} threads", flush=True)
    alive = True
    while time.monotonic() < until and alive:
        time.sleep(0.5)
        now = time.monotonic()
        alive = gateway.process.poll() is None
        if not alive:
            break
        memory.append(gateway.status("VmRSS") * 1024)
        if now >= next_reload:
            gateway.reload()
            next_reload = time.monotonic() + 3
        if now >= next_kill:
            service = services[int((now - started) // 20) % 2]
            service.kill()
            time.sleep(1)
            service.start()
            next_kill = time.monotonic() + 20
        if now >= next_minute:
            next_minute += 60
            minutes.append(memory[-1])
            print(f"soak: minute {len(minutes) - 1}: RSS {memory[-1] >> 20} MiB, "
                  f"{gateway.descriptors()} fds, {len(records.ids)} records", flush=True)
    for load in loads:
        load.join(120)
    checks = []

    def check(name, fine, detail):
        checks.append((name, fine, detail))

    check("alive", alive, f"pid {gateway.process.pid}")
    if alive:
        quiet = time.monotonic()
        back = lambda: gateway.descriptors() <= start["fds"] and gateway.status("Threads") <= start["threads"]
        while not back() and time.monotonic() < quiet + SETTLE:
            time.sleep(1)
        check("file descriptors", gateway.descriptors() <= start["fds"],
              f"{start['fds']} at the start, {gateway.descriptors()} after {time.monotonic() - quiet:.0f} s")
        check("threads", gateway.status("Threads") <= start["threads"] + 1,
              f"{start['threads']} at the start, {gateway.status('Threads')} now")
        records.end.set()
        records.join()
        wait_for(lambda: gateway.metric("portcullis_audit_queue") == 0, "the audit queue")
        records.move()
        written = gateway.metric("portcullis_audit_records_written_total")
        dropped = gateway.metric("portcullis_audit_records_dropped_total")
        check("records written", written == sum(records.by_agent.values()),
              f"{written:.0f} by the metric, {sum(records.by_agent.values())} in the file, "
              f"moved away {records.moved} times")
        check("records dropped", dropped == 0, f"{dropped:.0f}")
        check("records whole", records.torn == 0, f"{records.torn} torn")
        check("request ids unique", records.twice == 0, f"{records.twice} twice")
        flying = gateway.metric("portcullis_requests_in_flight")
        check("nothing under way", flying == 0, f"{flying:.0f} in flight")
        gateway.process.send_signal(signal.SIGTERM)
        try:
            code = gateway.process.wait(60)
        except subprocess.TimeoutExpired:
            code = "none within a minute"
        check("exit code", code == 0, str(code))
    third = max(1, len(memory) // 3)
    middle = sorted(memory[third:2 * third])[third // 2] if len(memory) >= 3 else 0
    last = sorted(memory[-third:])[third // 2]
    check("memory", last <= middle * GROWTH_RATIO + GROWTH_BYTES,
          f"median {middle >> 20} MiB in the second third, {last >> 20} MiB in the last; by minute: "
          + " ".join(str(value >> 20) for value in minutes))
    gateway.log.close()
    with open(gateway.log.name, errors="replace") as file:
        lines = file.readlines()
    panics = [line for line in lines if "panic" in line]
    # The configurations that were broken on purpose name an upstream that is not there.
    expected = (f"`{BROKEN_UPSTREAM}`", "configuration")
    errors = [line for line in lines if '"level":"ERROR"' in line
              and not any(word in line for word in expected)]
    check("no panic", not panics and records.outcomes["panic"] == 0, f"{len(panics)} in the log")
    check("no error in the log", not errors, f"{len(errors)}" + "".join(errors[:3]))
    check("reloads", gateway.reloads["wrong"] == 0,
          ", ".join(f"{number} {how}" for how, number in sorted(gateway.reloads.items())))
    print("\nload       requests  records  outcomes")
    for load in loads:
        seen = records.by_agent[f"soak-{load.name}"]
        fine = load.least <= seen <= load.most
        outcomes = ", ".join(f"{number} {name}" for name, number in sorted(load.outcomes.items()) if number)
        span = str(load.least) if load.least == load.most else f"{load.least}+{load.most - load.least}"
        print(f"{load.name:8} {span:>10} {seen:>8}  {outcomes}")
        check(f"{load.name}: one record each", fine, f"{span} requests, {seen} records")
        check(f"{load.name}: load ran", not load.trouble, f"{len(load.trouble)} faults"
              + (": " + load.trouble[0] if load.trouble else ""))
    kills = ", ".join(f"{service.kind} {service.kills}" for service in services)
    print(f"\nkilled: {kills}; records by outcome: "
          + ", ".join(f"{number} {name}" for name, number in records.outcomes.most_common()))
    print()
    for name, fine, detail in checks:
        print(f"{'ok  ' if fine else 'FAIL'}  {name:26} {detail}")
    failed = sum(not fine for _, fine, _ in checks)
    print(f"\nsoak: {'passed' if not failed else f'{failed} of {len(checks)} checks FAILED'}")
    return not failed


if __name__ == "__main__":
    sys.exit(main())
