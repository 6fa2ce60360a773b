"""What is measured beside CPU per request. Each mode fills its own part of the results."""

import contextlib
import http.server
import json
import math
import os
import signal
import subprocess
import threading
import time

from . import peers
from .measure import Failed, Load, Process, ask, cpu, load, measured, say, status

API = "/orders/tenants/42?expand=items"
MUTUAL = peers.Scenario("mTLS", "TLS with client certificates", mutual=True)
S1, S4 = peers.SCENARIOS["S1"], peers.SCENARIOS["S4"]


def keep(results, mode, key, peer, value):
    results.setdefault(mode, {}).setdefault(key, {}).setdefault(peer, []).append(value)


def able(rig, contestants, results, mode, names, scenario):
    """Those of the contestants that the mode is for, checked."""
    for peer in contestants:
        if peer.name not in names and not isinstance(peer, peers.Gateway) or peer.options.get("only") is not None:
            continue
        reason = peer.missing() or peer.cannot(scenario)
        if not reason and (scenario.name, peer.name) not in rig.checked:
            rig.new_ports_for_peer()
            try:
                reason = "; ".join(rig.check(peer, scenario))
            except Failed as failure:
                reason = str(failure)
            rig.checked[scenario.name, peer.name] = reason
        reason = reason or rig.checked.get((scenario.name, peer.name))
        if reason:
            results["cannot"][f"{mode} {peer.name}"] = reason
        else:
            yield peer


def in_turn(rig, contestants, results, mode, names, scenario, work, rounds=None):
    """Calls `work(peer, group)` for each peer in each round, freshly started."""
    for round_ in range(rounds or rig.options.rounds):
        for peer in able(rig, contestants, results, mode, names, scenario):
            say(f"{mode} {scenario.name} round {round_ + 1} {peer.name}")
            rig.new_ports_for_peer()
            try:
                with rig.start(peer, scenario) as group:
                    rig.wait_until_good(scenario)
                    work(peer, group)
            except Failed as failure:
                say(f"  {failure}")
                results["cannot"][f"{mode} {peer.name}"] = str(failure)[:200]


def handshakes(rig, contestants, results):
    """CPU of a new connection with one request on it: the TLS handshake is most of it."""
    names = ("nginx", "haproxy", "envoy", "caddy", "traefik") if rig.options.full else ("nginx", "haproxy", "envoy")
    seconds = min(rig.options.seconds, 1.5)
    for scenario, suffix in ((S1, ""), (MUTUAL, " with client certificate")):
        def work(peer, group):
            for resume, key in ((False, "full"), (True, "resumed")):
                arguments = rig.target("h1", scenario) + [
                    "--path", API, "--new-connections", "--connections", 16, "--warm", 0.3, "--seconds", seconds]
                book = measured(rig.load_binary, arguments + (["--resume"] if resume else []),
                                rig.load_cores, rig.log, group.roots())
                share = book["resumed_handshakes"] / max(book["full_handshakes"] + book["resumed_handshakes"], 1)
                if book["good"] < 0.999 * book["requests"] or not book["requests"]:
                    raise Failed(f"failed: {book['statuses']} {book['errors']}")
                if (share < 0.95) if resume else (share > 0):
                    raise Failed(f"{share:.0%} of {key} handshakes were resumed")
                keep(results, "handshakes", key + suffix, peer.name, book)
        in_turn(rig, contestants, results, "handshakes", names, scenario, work)


def idle(rig, contestants, results):
    """Memory of connections on which nothing happens: one request each, then silence."""
    count = 1000 if rig.options.quick or rig.options.smoke else 10000
    count = min(count, peers.most_connections() - 200)

    def work(peer, group):
        rig.time(peer, S1, "h1", "-", 0.3, group=group, warm=0.1)
        time.sleep(0.5)
        before = sum(status(root, "VmRSS") for root in group.roots())
        arguments = [a for a in rig.target("h1", S1)]
        holding = Load([rig.load_binary, "idle", "--connections", str(count)] + [str(a) for a in arguments],
                       rig.load_cores, rig.log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with holding:
            if holding.line() != "ready":
                raise Failed("the load generator is confused")
            # What is given back a little later counts as given back.
            time.sleep(0.5 if rig.options.smoke else 6)
            after = sum(status(root, "VmRSS") for root in group.roots())
            keep(results, "idle", "KiB", peer.name, (after - before) / count)
            keep(results, "idle", "connections", peer.name, count)
            holding.go()
            holding.popen.wait(30)
    in_turn(rig, contestants, results, "idle", ("nginx", "haproxy", "envoy", "caddy", "traefik"), S1, work, rounds=1)


def bodies(rig, contestants, results):
    """100 MiB down and up over TLS."""
    def work(peer, group):
        for key, more in (("down", ["--path", "/orders/tenants/large"]), ("up", ["--path", API, "--upload", 100 << 20])):
            arguments = rig.target("h1", S1) + more + ["--connections", 2, "--warm", 0.2, "--seconds", rig.options.seconds]
            book = measured(rig.load_binary, arguments, rig.load_cores, rig.log, group.roots())
            moved = max(book["received"], book["sent"])
            if book["good"] != book["requests"] or not moved:
                raise Failed(f"failed: {book['statuses']} {book['errors']}")
            book["ms_per_gb"] = book["cpu_seconds"] * 1e3 / (moved / 1e9)
            keep(results, "bodies", key, peer.name, book)
    in_turn(rig, contestants, results, "bodies", ("nginx", "haproxy", "envoy"), S1, work)


def top_rate(rig, gateway):
    rig.new_ports_for_peer()
    with rig.start(gateway, S4) as group:
        return rig.time(gateway, S4, "h1", "1000", 1.5, group=group)["per_second"]


def latency(rig, contestants, results):
    """At 70 % of the gateway's own top rate in S4, whoever it is."""
    rate = round(0.7 * top_rate(rig, contestants[0]))
    results["latency_rate"] = rate

    def work(peer, group):
        book = rig.time(peer, S4, "h1", "1000", max(rig.options.seconds, 1.5), rate, group)
        keep(results, "latency", "S4 h1 1000", peer.name, book)
    in_turn(rig, contestants, results, "latency", ("haproxy", "envoy", "envoy-cache"), S4, work)


class Issuer:
    """Serves a key set and counts how often it is asked."""

    def __init__(self, keys):
        issuer = self
        issuer.fetches = 0

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.fetches += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(keys)))
                self.end_headers()
                self.wfile.write(keys)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def junk(rig, contestants, results):
    """Good callers while somebody sends what takes half of the gateway's CPU: forged tokens, tokens with
    random `kid`s, and, to compare with, requests that no route takes."""
    gateway = contestants[0]
    with open(os.path.join(rig.keys, "jwks.json"), "rb") as file:
        keys = file.read()

    def slowed(document, issuer):
        del document["authentication_failures"]

    def fetched(document, issuer):
        document["issuers"]["bench"]["keys"] = {"jwks_uri": issuer.url}
    for key, more, edit in (
            ("every one verified", ["--tokens", os.path.join(rig.keys, "tokens.junk")], None),
            ("slowed down by address", ["--tokens", os.path.join(rig.keys, "tokens.junk")], slowed),
            ("random kids", ["--tokens", os.path.join(rig.keys, "tokens.kids")], fetched),
            ("no tokens, no route", ["--path", "/nowhere"], None)):
        for round_ in range(rig.options.rounds):
            say(f"junk round {round_ + 1}, {key}")
            rig.new_ports_for_peer()
            with Issuer(keys) as issuer:
                change = edit and (lambda document, place, scenario: edit(document, issuer))
                subject = peers.Gateway(gateway.tools, gateway.binary, gateway.name, change=change)
                one_flood(rig, results, subject, key, more, issuer)


@contextlib.contextmanager
def first(service):
    """What is started here, and the service, run before anything else on their cores; whether that is allowed."""
    policy = (os.SCHED_RR, os.sched_param(1))
    tasks = [0] + [int(task) for task in os.listdir(f"/proc/{service}/task")]
    try:
        for task in tasks:
            os.sched_setscheduler(task, *policy)
        allowed = True
    except PermissionError:
        allowed = False
    try:
        yield allowed
    finally:
        for task in tasks:
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


def one_flood(rig, results, subject, key, more, issuer):
    with rig.start(subject, S4) as group:
        rig.wait_until_good(S4)
        hostile = rig.target("h1", S4) + more + ["--source", "127.0.0.66", "--connections", 16]
        top = rig.time(subject, S4, "h1", "1000", 0.7, group=group)
        begun, before = time.monotonic(), issuer.fetches
        # Until the budget is used up, tokens with random `kid`s are not refused but made to wait.
        cost = measured(rig.load_binary, hostile + ["--warm", 6 if key == "random kids" else 0.2, "--seconds", 0.7],
                        rig.load_cores, rig.log, group.roots())
        good_rate = round(0.2 * top["per_second"])
        # Half of the CPU, or what the load generator can send.
        junk_rate = round(min(0.5e6 / cost["cpu_us"], 0.5 * cost["per_second"]))
        # Flood, good callers and the service share one core, and a flood four times as cheap is four times as many
        # requests to send: as equals they wait for each other's slices, milliseconds that say nothing of the
        # gateway. So good callers and service come first on their core, and the flood has what they leave of it.
        # That it could send what it should is seen in what came of it, and in how busy the gateway was.
        with first(rig.service.pid) as came_first:
            alone = rig.time(subject, S4, "h1", "1000", max(rig.options.seconds, 1), good_rate, group)
            with load(rig.load_binary, hostile + ["--rate", junk_rate, "--warm", 0.1, "--seconds",
                                                  rig.options.seconds + 2], rig.load_cores, rig.log, yields=True) as flood:
                flood.line()
                flood.go()
                beside = rig.time(subject, S4, "h1", "1000", max(rig.options.seconds, 1), good_rate, group, warm=0.5)
                sent = json.loads(flood.line())
                flood.go()
        keep(results, "junk", key, subject.name, {
            "alone_us": alone["latency_us"], "beside_us": beside["latency_us"], "good_rate": good_rate,
            "good_statuses": beside["statuses"], "junk_rate": junk_rate, "junk_cpu_us": cost["cpu_us"],
            "came_first": came_first, "junk_sent": sent["per_second"], "junk_us": sent["latency_us"],
            "busy": beside["cpu_seconds"] / beside["seconds"], "busy_alone": alone["cpu_seconds"] / alone["seconds"],
            "junk_top_rate": cost["per_second"], "junk_statuses": cost["statuses"],
            "fetches": issuer.fetches - before, "fetches_in_seconds": time.monotonic() - begun})


def many_routes(count, generation=0):
    def change(document, place, scenario):
        route = document["routes"][0]
        document["routes"] = [route] + [
            {**route, "name": f"route-{number}-{generation if number == 1 else 0}",
             "path": f"/service-{number % 50}/v1/things-{number}/{{id}}"} for number in range(1, count)]
    return change


def startup(rig, contestants, results):
    """From the start of the process to its first answer, with 1,000 routes and keys from a file."""
    gateway = contestants[0]
    subject = peers.Gateway(gateway.tools, gateway.binary, gateway.name, change=many_routes(1000))
    rig.new_ports_for_peer()
    for _ in range(3 if rig.options.quick or rig.options.smoke else 7):
        rig.new_ports_for_peer()
        place = rig.place(subject, S4)
        command = subject.command(place, S4)
        begun = time.monotonic()
        with Process(command, rig.peer_cores, os.path.join(place.folder, "log")) as process:
            while ask(rig.ports["plain"], "/nowhere")[0] == 0:
                if time.monotonic() - begun > 20:
                    raise Failed(f"does not start: {process.tail()}")
                time.sleep(0.001)
            seconds = time.monotonic() - begun
            rss = status(process.pid, "VmRSS")
            keep(results, "startup", "1,000 routes", gateway.name, {"seconds": seconds, "rss_kib": rss})


def limiter_keys(rig, contestants, results):
    """Memory of a million callers in one limit, told apart by network."""
    gateway = contestants[0]
    count = 20000 if rig.options.smoke else 100000 if rig.options.quick else 1000000

    def change(document, place, scenario):
        document["trusted_proxies"] = ["127.0.0.0/8"]
        document["limits"] = {"networks": {"by": "address", "rate": "5/d", "burst": 100, "max_keys": 2000000}}
        document["routes"][0]["limits"] = ["networks"]
    subject = peers.Gateway(gateway.tools, gateway.binary, gateway.name, change=change)
    s0 = peers.SCENARIOS["S0"]
    rig.new_ports_for_peer()
    with rig.start(subject, s0) as group:
        # What serving costs once is not counted.
        measured(rig.load_binary, rig.target("h1", s0) + ["--networks", 1000, "--warm", 0, "--seconds", 30],
                 rig.load_cores, rig.log, group.roots())
        before = status(group.roots()[0], "VmRSS")
        say(f"sending from {count} networks")
        book = measured(rig.load_binary, rig.target("h1", s0) + [
            "--networks", count, "--warm", 0, "--seconds", 300], rig.load_cores, rig.log, group.roots())
        if book["good"] != book["requests"] or book["good"] < 0.99 * count:
            raise Failed(f"{book['statuses']} {book['errors']}")
        after = status(group.roots()[0], "VmRSS")
        keep(results, "keys", "limiter", gateway.name, {"keys": book["good"], "bytes": (after - before) * 1024})


def reload(rig, contestants, results):
    """5,000 routes, read anew every second under load."""
    gateway = contestants[0]
    seconds = max(rig.options.seconds, 2) + 1
    options = {}
    subject = peers.Gateway(gateway.tools, gateway.binary, gateway.name,
                            change=lambda *a: many_routes(5000, options["generation"])(*a))
    for round_ in range(rig.options.rounds):
        say(f"reload round {round_ + 1}")
        rig.new_ports_for_peer()
        place = rig.place(subject, S4)
        # Written before anything is timed: to write 5,000 routes takes a core longer than to read them.
        coming = []
        for generation in range(1, math.ceil(seconds) + 1):
            options["generation"] = generation
            written = subject.command(place, S4)[-1]
            coming.append(f"{written}.{generation}")
            os.replace(written, coming[-1])
        options["generation"] = 0
        with rig.start(subject, S4) as group:
            pid = group.roots()[0]
            top = rig.time(subject, S4, "h1", "1000", 0.7, group=group)["per_second"]
            rate = round(top * 0.4)
            calm = rig.time(subject, S4, "h1", "1000", seconds, rate, group)
            before = status(pid, "VmRSS")
            try:
                with open(f"/proc/{pid}/clear_refs", "w") as file:
                    file.write("5")
            except OSError:
                pass
            arguments = rig.target("h1", S4) + rig.tokens(S4, "1000") + ["--rate", rate, "--warm", 0.3, "--seconds", seconds]
            with load(rig.load_binary, arguments, rig.load_cores, rig.log) as running:
                running.line()
                used = cpu([pid])
                running.go()
                end = time.monotonic() + seconds - 0.5
                reloads = 0
                while time.monotonic() < end:
                    os.replace(coming[reloads], written)
                    os.kill(pid, signal.SIGHUP)
                    reloads += 1
                    time.sleep(1)
                book = json.loads(running.line())
                used = cpu([pid]) - used
                running.go()
            peak = status(pid, "VmHWM")
            if book["good"] != book["requests"]:
                raise Failed(f"{book['statuses']} {book['errors']}")
            keep(results, "reload", "5,000 routes", gateway.name, {
                "calm_us": calm["latency_us"], "reloading_us": book["latency_us"], "before_kib": before,
                "peak_kib": peak, "reloads": reloads, "rate": rate, "cpu_seconds": used})


def cores(rig, contestants, results):
    """Two workers against one. The load needs a core too: with fewer than four, CPU per request stands
    for the requests a second that two whole cores would do."""
    gateway = contestants[0]
    honest = len(rig.cores) >= 4
    both = set(rig.cores[-2:])
    load_cores = set(rig.cores[:-2]) if honest else both
    results["cores_by_rate"] = honest
    for round_ in range(rig.options.rounds):
        for workers in (1, 2):
            say(f"cores round {round_ + 1}: {workers}")
            rig.new_ports_for_peer()
            subject = peers.Gateway(gateway.tools, gateway.binary, gateway.name)
            with rig.start(subject, S4, workers=workers, cores=both if workers == 2 or not honest else {rig.cores[-1]}) as group:
                arguments = rig.target("h1", S4) + rig.tokens(S4, "1000") + ["--seconds", rig.options.seconds]
                book = measured(rig.load_binary, arguments, load_cores, rig.log, group.roots())
                keep(results, "cores", str(workers), gateway.name, book)


def knows_decision_cache(binary):
    try:
        return "decision_cache" in subprocess.run([binary, "schema"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def variants(tools, binary):
    """The gateway in other moods, on some cells each."""
    here = os.path.dirname(os.path.abspath(__file__))
    s4, forwarding = {"S4 h1 1000"}, {"S0 h1 -", "S0 h2 -", "S1 h1 -", "S1 h2 -"}

    def quiet(document, place, scenario):
        document["audit"] = {"sink": "none"}

    def sixty(cached):
        def change(document, place, scenario):
            if "policies" in document:
                policy = {"files": [os.path.join(here, "../policies/sixty.rego"), os.path.join(here, "sixty.data.yaml")],
                          "entrypoint": "data.sixty.allow", "budget": {"time": "1s"}}
                if not cached and knows_decision_cache(binary):
                    policy["decision_cache"] = False
                document["policies"]["bench"] = policy
        return change

    made = [("-quiet", "audit off", quiet, s4 | forwarding), ("-60", "a policy of 60 lines", sixty(True), s4),
            ("-60-uncached", "the same, decided anew each time", sixty(False), s4)]
    for suffix, says, change, only in made:
        gateway = peers.Gateway(tools, binary, "portcullis" + suffix, change=change, only=only)
        gateway.says = says
        yield gateway


MODES = {"handshakes": handshakes, "idle": idle, "bodies": bodies, "latency": latency, "junk": junk,
         "startup": startup, "keys": limiter_keys, "reload": reload, "cores": cores}
