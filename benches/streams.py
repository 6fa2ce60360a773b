#!/usr/bin/env python3
"""Holds many streams open and takes the permission of one in a hundred of them away.

    streams.py --binary target/release/portcullis [--streams 20000] [--workers 2] [--json FILE]

Starts an event source, a gateway and one client that opens a stream for each of so many callers,
each with a token of its own. Then, three times over, one in a hundred loses its permission: by
another policy, by a revocation through the admin listener, and by the end of its token. Prints how
long it took until exactly those were closed, whether any other was, what a request of somebody else
noticed meanwhile (worst and 99th percentile, from a process of its own), and the memory of a stream.
Needs the package `cryptography`, and two file descriptors a stream in the gateway; one with --relay.
"""

import argparse
import asyncio
import base64
import http.client
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

# What the admin listener asks for: a secret of this run, which the gateway takes from its environment.
os.environ["BENCH_ADMIN_TOKEN"] = os.urandom(16).hex()
ADMIN = {"authorization": "Bearer " + os.environ["BENCH_ADMIN_TOKEN"]}
ISSUER, AUDIENCE = "https://login.example.test", "https://api.example.test"
SHARE = 100  # one in so many loses its permission, each time another
EVERY = 20   # seconds between two events of a stream


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())

    def jwks(self):
        public = self.key.public_key().public_numbers()
        point = {"x": b64(public.x.to_bytes(32, "big")), "y": b64(public.y.to_bytes(32, "big"))}
        return {"keys": [{"kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256", **point}]}

    def token(self, subject, lifetime):
        now = int(time.time())
        header = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"}
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "jti": f"{subject}-{lifetime}",
                  "iat": now, "exp": now + lifetime}
        text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def raise_descriptors():
    """As many as may be had; the gateway does the same for itself, within the hard limit."""
    for hard in (200_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            return resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            continue


# The event source.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"


class Source(asyncio.Protocol):
    open = set()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if b"GET /canary" in data:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        elif b"\r\n\r\n" in data:
            self.transport.write(HEAD + EVENT)
            Source.open.add(self)

    def connection_lost(self, _):
        Source.open.discard(self)


async def tick():
    while True:
        streams = list(Source.open)
        slices = EVERY * 50
        for part in range(slices):
            for stream in streams[part::slices]:
                stream.transport.write(EVENT)
            await asyncio.sleep(EVERY / slices)


def source(listener):
    async def serve():
        server = await asyncio.get_running_loop().create_server(
            Source, sock=listener, backlog=4096)
        ticking = asyncio.create_task(tick())
        await server.serve_forever()
        await ticking

    raise_descriptors()
    asyncio.run(serve())


# Somebody else, who is allowed all the time.

def canary(port, token, pipe):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies = []
    while True:
        begun = time.monotonic()
        connection.request("GET", "/canary", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        latencies.append((begun, time.monotonic() - begun))
        if pipe.poll():
            pipe.recv()
            pipe.send(latencies)
            latencies = []
        time.sleep(0.002)


# The streams.

class Stream(asyncio.Protocol):
    begun = 0
    ended = {}

    over = False

    def __init__(self, number, port, token):
        self.number, self.port, self.token, self.first = number, port, token, True

    def connection_made(self, transport):
        transport.write(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
                        f"Authorization: Bearer {self.token}\r\n\r\n".encode())
        self.token = None

    def data_received(self, data):
        if self.first:
            self.first = False
            assert data.startswith(b"HTTP/1.1 200"), data
            Stream.begun += 1
        if b"portcullis.ended" in data:
            code = data.split(b'"code":"')[1].split(b'"')[0].decode()
            self.over = True  # its connection is closed later, as an idle one
            Stream.ended.setdefault(self.number, (time.time(), code))

    def connection_lost(self, _):
        if not self.over:
            Stream.ended.setdefault(self.number, (time.time(), "lost"))


async def until(condition, patience):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def admin(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {**ADMIN, "content-type": "application/json"}
    connection.request("POST", path, body=body and json.dumps(body), headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status >= 300:
        sys.exit(f"POST {path}: {answer.status} {text}")


def status(pid, field):
    with open(f"/proc/{pid}/status") as text:
        return next(int(line.split()[1]) for line in text if line.startswith(field))


def cpu(pid):
    with open(f"/proc/{pid}/stat") as text:
        fields = text.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def policy(denied):
    return f"package gate\n\nbanned if input.identity.subject in {json.dumps(sorted(denied), indent=1)}\n\n" \
        "default allow := false\n\nallow if not banned\n"


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def main(options):
    raise_descriptors()
    issuer, count = Issuer(), options.streams
    folder = tempfile.TemporaryDirectory()
    path = lambda name: os.path.join(folder.name, name)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    upstream = listener.getsockname()[1]
    source_process = multiprocessing.Process(target=source, args=(listener,), daemon=True)
    source_process.start()
    port, admin_port = free_port(), free_port()
    config = {
        "workers": options.workers,
        "listeners": {"local": {
            "address": f"127.0.0.1:{port}", "plaintext": True,
            "bounds": {"max_connections": count + 100, "max_connections_per_address": count + 100}}},
        "issuers": {"main": {"issuer": ISSUER, "keys": {"file": "jwks.json"}, "leeway": "0s",
                             "audiences": [AUDIENCE], "algorithms": ["ES256"],
                             # Whose result is forgotten is verified anew whenever something changes.
                             "cache": {"entries": count + 1000, "memory": "512MiB"}}},
        "policies": {"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}},
        "upstreams": {"main": {"endpoints": [f"http://127.0.0.1:{upstream}"],
                               "pool": {"max_connections": count + 100}}},
        "routes": [{"name": "events", "path": "/{*rest}", "authn": ["main"], "policy": "gate",
                    "upstream": "main",
                    "bounds": {"idle_timeout": "10m", "total_timeout": "1h"}}],
        "audit": {"sink": {"file": path("audit.jsonl")}},
        "admin": {"address": f"127.0.0.1:{admin_port}", "token": "env:BENCH_ADMIN_TOKEN"},
    }
    for name, text in [("gateway.yaml", json.dumps(config)), ("gate.rego", policy([])),
                       ("jwks.json", json.dumps(issuer.jwks()))]:
        with open(path(name), "w") as file:
            file.write(text)
    relay = None
    if options.relay:
        # Another gateway stands behind, and is spoken to over HTTP/2: a stream costs the measured one
        # a single descriptor then.
        behind = free_port()
        second = {
            "workers": options.workers,
            "listeners": {"local": {"address": f"127.0.0.1:{behind}", "plaintext": True}},
            "upstreams": config["upstreams"],
            "routes": [{"name": "all", "path": "/{*rest}", "authn": ["anonymous"],
                        "policy": "public", "upstream": "main",
                        "bounds": config["routes"][0]["bounds"]}],
            "audit": {"sink": "none"},
        }
        with open(path("relay.yaml"), "w") as file:
            json.dump(second, file)
        relay = subprocess.Popen([options.binary, "run", "--config", path("relay.yaml")],
                                 stdout=subprocess.DEVNULL, stderr=open(path("relay.log"), "w"))
        config["upstreams"] = {"main": {"endpoints": [f"http://127.0.0.1:{behind}"],
                                        "protocol": "http2"}}
        with open(path("gateway.yaml"), "w") as file:
            json.dump(config, file)
        if not await until(lambda: answers(behind), 20):
            sys.exit("the relay did not start: " + open(path("relay.log")).read()[-1000:])
    gateway = subprocess.Popen([options.binary, "run", "--config", path("gateway.yaml")],
                               stdout=subprocess.DEVNULL, stderr=open(path("log"), "w"))
    try:
        await run(options, issuer, gateway.pid, port, admin_port, path)
    except BaseException:
        print(open(path("log")).read()[-3000:], file=sys.stderr)
        raise
    finally:
        gateway.terminate()
        gateway.wait()
        if relay:
            relay.terminate()
            relay.wait()
        source_process.terminate()


async def run(options, issuer, pid, port, admin_port, path):
    count, report = options.streams, {}
    short = 60 + count // 250 if count >= 1000 else 25

    if not await until(lambda: answers(port), 20):
        sys.exit("the gateway did not start")
    ours, theirs = multiprocessing.Pipe()
    bystander = multiprocessing.Process(
        target=canary, args=(port, issuer.token("canary", 3600), theirs), daemon=True)
    bystander.start()
    await asyncio.sleep(1)

    loop, before = asyncio.get_running_loop(), status(pid, "VmRSS")
    print(f"opening {count} streams", end="", flush=True)
    gate = asyncio.Semaphore(64)
    expiring = {}

    async def one(number):
        async with gate:
            lifetime = 3600
            if number % SHARE == 2:
                lifetime = 3600 if options.no_expiry else short
                expiring[number] = int(time.time()) + short
            token = issuer.token(f"user-{number}", lifetime)
            await loop.create_connection(lambda: Stream(number, port, token), "127.0.0.1", port)
        if number % (count // 20 or 1) == 0:
            print(".", end="", flush=True)

    begun = time.time()
    await asyncio.gather(*(one(number) for number in range(count)))
    if not await until(lambda: Stream.begun >= count, 60):
        sys.exit(f"only {Stream.begun} streams began")
    print(f" {time.time() - begun:.1f} s")
    await asyncio.sleep(2)
    report["memory_per_stream_kib"] = (status(pid, "VmRSS") - before) / count
    print(f"memory: {report['memory_per_stream_kib']:.1f} KiB a stream, both connections, its token "
          f"and identity included ({status(pid, 'VmRSS') // 1024} MiB in all)")

    def latencies():
        ours.send("")
        return [seconds for _, seconds in ours.recv()]

    def line(values):
        values = sorted(values)
        return f"p99 {1000 * values[int(len(values) * 0.99)]:.2f} ms, worst {1000 * values[-1]:.2f} ms"

    latencies()
    await asyncio.sleep(3)
    quiet = latencies()
    print(f"a bystander's request while nothing happens: {line(quiet)}")

    async def strike(name, meant, act, patience=20, due=None):
        assert not Stream.ended, Stream.ended
        latencies()
        spent, begun = cpu(pid), time.time()
        await loop.run_in_executor(None, act)
        acted = time.time() - begun
        done = await until(lambda: meant <= Stream.ended.keys(), patience)
        late = [when - (due[number] if due else begun)
                for number, (when, _) in Stream.ended.items() if number in meant]
        last = max(late, default=0)
        spent = cpu(pid) - spent
        await asyncio.sleep(2)  # time for others to be closed wrongly
        others = Stream.ended.keys() - meant
        codes = sorted({code for _, code in Stream.ended.values()})
        report[name] = {"seconds": last, "act_seconds": acted, "closed": len(meant),
                        "others": len(others), "complete": done, "cpu_seconds": spent}
        print(f"{name}: {len(meant) if done else len(meant & Stream.ended.keys())} of {len(meant)} "
              f"closed within {last:.2f} s ({'/'.join(codes)}; the call took {acted:.2f} s), "
              f"{len(others)} others; bystander {line(latencies())}; {spent:.2f} s of CPU")
        Stream.ended.clear()

    share = lambda rest: {number for number in range(count) if number % SHARE == rest}

    def other_policy():
        with open(path("gate.rego"), "w") as file:
            file.write(policy(f"user-{number}" for number in share(0)))
        admin(admin_port, "/reload")

    def revoke():
        targets = [{"kind": "subject", "issuer": ISSUER, "subject": f"user-{number}"}
                   for number in sorted(share(1))]
        for start in range(0, len(targets), 100):
            admin(admin_port, "/revocations", targets[start:start + 100])

    await strike("policy", share(0), other_policy)
    if not options.no_revocations:
        await strike("revocation", share(1), revoke)
    # Tokens were made one after another, so each has an end of its own.
    if not options.no_expiry:
        await strike("token", set(expiring), lambda: None, patience=2 * short, due=expiring)
    bystander.terminate()
    wrong = [name for name, one in report.items()
             if isinstance(one, dict) and (one["others"] or not one["complete"])]
    if wrong:
        sys.exit(f"not exactly those were closed: {', '.join(wrong)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/portcullis")
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-revocations", action="store_true")
    parser.add_argument("--no-expiry", action="store_true", help="do not wait for tokens to end")
    parser.add_argument("--relay", action="store_true",
                        help="with HTTP/2 to the source: one descriptor a stream")
    parser.add_argument("--json")
    asyncio.run(main(parser.parse_args()))
