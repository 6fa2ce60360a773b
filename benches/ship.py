#!/usr/bin/env python3
"""Ship: what sinks behind the audit ledger cost requests, and what a sink that is away costs.

    cargo build --release
    benches/ship.py --binary target/release/portcullis --seconds 60 --rate 5000

Needs Python 3.9 and h2load, and nothing else. Everything runs on 127.0.0.1, on free ports, in a
temporary folder. The same load, at a fixed rate, runs against one gateway after the other:

    ledger      records go to a ledger, and nowhere else
    shipped     a sink behind it takes everything
    down        the sink is away all the time; afterwards it comes back

`--kind down --seconds 600 --rounds 1` is a sink that is away for ten minutes.

Rounds alternate (--rounds), so that what the machine does besides falls on all of them. Told are the
percentiles of all rounds of a kind, by h2load's own log of each request; the most memory the gateway
had; and how long the sink took to catch up. At the end of each round it must be true that:

    - each answer that h2load counts has a record in the ledger, and each of these is at the sink, in
      its order, once
    - `portcullis audit verify` finds nothing, and nothing was counted as lost

Exit code 0 if all of it is, else 1; 2 when a program is missing. A figure from a machine that does
something else is worth nothing: the table says how busy it was before.
"""

import argparse
import http.client
import http.server
import json
import gzip
import os
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
KINDS = ("ledger", "shipped", "down")


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes posts as they come, and looks into them later: it shares the machine."""

    protocol_version = "HTTP/1.1"
    up = True
    spool = None
    bytes = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Sink.up:
            Sink.spool.write(body)
            Sink.bytes += len(body)
        self.send_response(200 if Sink.up else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


ORIGIN = """
import asyncio
class Origin(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.rest = transport, b""
    def data_received(self, data):
        parts = (self.rest + data).split(b"\\r\\n\\r\\n")
        self.rest = parts.pop()
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello" * len(parts))
async def main():
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", %d)
    await server.serve_forever()
asyncio.run(main())
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited too long for {what}")
        time.sleep(0.02)


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def rss(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) * 1024


def configuration(kind, ports, workers):
    ship = ""
    if kind != "ledger":
        ship = f"""
  ship:
    siem: {{ to: {{ http: {{ url: "http://127.0.0.1:{ports['sink']}/" }} }}, retry: {{ max_delay: 1s }} }}"""
    return f"""
workers: {workers}
listeners: {{ local: {{ address: "127.0.0.1:{ports['gateway']}", plaintext: true }} }}
admin: {{ address: "127.0.0.1:{ports['admin']}", token: "env:BENCH_ADMIN_TOKEN" }}
upstreams: {{ main: {{ endpoints: ["http://127.0.0.1:{ports['origin']}"] }} }}
routes: [{{ name: open, path: "/{{*rest}}", authn: [anonymous], policy: public, upstream: main }}]
audit:
  sink: {{ ledger: {{ folder: records, key: key.pem }} }}{ship}
"""


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=ADMIN)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def behind(admin):
    status = json.loads(get(admin, "/status")[1])["audit"]["ship"]
    return max([sink["behind_records"] for sink in status.values()], default=0)


def ids_of_ledger(folder):
    ids = []
    for name in sorted(os.listdir(folder)):
        if name.startswith("segment-"):
            with open(os.path.join(folder, name)) as lines:
                ids += [json.loads(line)["request_id"] for line in lines if line.startswith('{"version":')]
    return ids


def ids_of_sink(spool):
    ids = []
    with gzip.open(spool, "rt") as text:
        part = []
        for line in text:
            part.append(line)
            if line.endswith("]\n"):
                try:
                    ids += [record["request_id"] for record in json.loads("".join(part))]
                    part = []
                except ValueError:
                    continue
    return ids


def run(kind, options, folder, faults):
    """One round: latencies in microseconds, most memory, seconds to catch up, megabytes sent."""
    ports = {name: free_port() for name in ("gateway", "admin", "origin", "sink")}
    spool = os.path.join(folder, "spool")
    Sink.spool, Sink.up, Sink.bytes = open(spool, "wb"), kind != "down", 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", ports["sink"]), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(os.path.join(folder, "gateway.yaml"), "w") as config:
        config.write(configuration(kind, ports, options.workers))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", os.path.join(folder, "key.pem")],
                   check=True, stderr=subprocess.DEVNULL)
    origin = subprocess.Popen([sys.executable, "-c", ORIGIN % ports["origin"]])
    log = open(os.path.join(folder, "log"), "w")
    gateway = subprocess.Popen([options.binary, "run"], cwd=folder, stdout=log, stderr=log)
    most, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.2):
            most[0] = max(most[0], rss(gateway.pid))

    try:
        wait_for("the origin", lambda: listening(ports["origin"]))
        wait_for("the gateway", lambda: listening(ports["gateway"]))
        threading.Thread(target=watch, daemon=True).start()
        requests = os.path.join(folder, "requests")
        # h2load's --rps is for each client.
        load = ["h2load", "--h1", "-c", str(options.clients), "-D", str(options.seconds),
                "--warm-up-time", "2", "--rps", str(max(1, options.rate // options.clients)),
                "--log-file", requests, f"http://127.0.0.1:{ports['gateway']}/a"]
        said = subprocess.run(load, capture_output=True, text=True)
        if said.returncode != 0:
            sys.exit(f"h2load failed: {said.stdout}{said.stderr}")
        waiting = behind(ports["admin"])
        Sink.up, begun = True, time.monotonic()
        wait_for("the sink to catch up", lambda: behind(ports["admin"]) == 0, 600)
        caught = time.monotonic() - begun
        # What connections had under way when the load ended.
        wait_for("the last records", lambda: json.loads(get(ports["admin"], "/status")[1])["audit"]["waiting"] == 0)
        wait_for("the sink to catch up", lambda: behind(ports["admin"]) == 0, 600)
        metrics = get(ports["admin"], "/metrics")[1]
        stop.set()
        gateway.send_signal(signal.SIGTERM)
        if gateway.wait(60) != 0:
            faults.append(f"{kind}: the gateway ended with {gateway.returncode}")
    finally:
        stop.set()
        for process in (gateway, origin):
            if process.poll() is None:
                process.kill()
                process.wait()
        server.shutdown()
        server.server_close()
        Sink.spool.close()
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(("portcullis_audit_records_dropped", "portcullis_audit_ship_lost")) and float(value):
            faults.append(f"{kind}: {line}")
    answers = [line.split("\t") for line in open(requests)]
    good = sum(1 for answer in answers if answer[1] == "200")
    ledger = ids_of_ledger(os.path.join(folder, "records"))
    if len(ledger) < good or len(set(ledger)) != len(ledger):
        faults.append(f"{kind}: {good} answers, {len(ledger)} records, {len(set(ledger))} different ones")
    if kind != "ledger" and ids_of_sink(spool) != ledger:
        faults.append(f"{kind}: the sink has something else than the ledger")
    verified = subprocess.run([options.binary, "audit", "verify", "records", "--key", "key.pem"],
                              cwd=folder, capture_output=True, text=True)
    if verified.returncode != 0:
        faults.append(f"{kind}: {verified.stdout}")
    times = [int(answer[2]) for answer in answers if answer[1] == "200"]
    return times, most[0], caught, waiting, Sink.bytes / 1e6


def percentile(times, share):
    return times[min(len(times) - 1, int(len(times) * share))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, type=os.path.abspath)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rate", type=int, default=5000, help="requests in a second, all clients together")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    for program in ("h2load", "openssl", options.binary):
        if not shutil.which(program):
            print(f"missing: {program}", file=sys.stderr)
            sys.exit(2)
    kinds = options.kind or KINDS
    busy, faults, found = os.getloadavg()[0], [], {kind: [] for kind in kinds}
    for number in range(options.rounds):
        for kind in kinds:
            print(f"round {number + 1} of {options.rounds}: {kind}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                found[kind].append(run(kind, options, folder, faults))
    table = {}
    for kind, rounds in found.items():
        times = sorted(time for times, *_ in rounds for time in times)
        table[kind] = {
            "requests": len(times),
            "p50_us": percentile(times, 0.50), "p99_us": percentile(times, 0.99),
            "p999_us": percentile(times, 0.999),
            "memory_mb": round(max(most for _, most, *_ in rounds) / 1e6, 1),
            "behind_records": max(waiting for *_, waiting, _ in rounds),
            "caught_up_s": round(max(caught for _, _, caught, *_ in rounds), 1),
            "sent_mb": round(sum(sent for *_, sent in rounds), 1),
        }
    if options.format == "json":
        print(json.dumps({"load_before": busy, "faults": faults, "kinds": table}, indent=2))
    else:
        print(f"load of the machine before: {busy:.1f}; {options.rate} requests/s, {options.workers} worker(s)")
        names = list(next(iter(table.values())))
        print("| | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
        for kind, row in table.items():
            print(f"| {kind} | " + " | ".join(str(row[name]) for name in names) + " |")
        for kind in kinds:
            if kind != "ledger" and "ledger" in kinds:
                more = table[kind]["p99_us"] - table["ledger"]["p99_us"]
                print(f"p99 of {kind} against ledger: {more:+d} us")
        for fault in faults:
            print(f"WRONG: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
