#!/usr/bin/env python3
"""What candidates cost: the gateway alone, and with three of them at full sampling.

    cargo build --release
    python3 benches/candidates.py                      about three minutes; nothing else should run
    python3 benches/candidates.py --seconds 1 --rounds 2 --gateway target/debug/portcullis --dev

One worker on the last core, load and service on the first, as benches/beside.py does it. The load is as
much as the gateway takes (S4: TLS, tokens, policy, limit, records). Each row is the median of the
rounds, which take turns. `requests` is the throughput, `CPU` that of the gateway for a request, with the
candidates'. `compared` is how many of the requests the candidates were asked about; the rest was left out
for want of time (`candidate_time`) and counted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from beside import Rig  # noqa: E402
from rig import peers  # noqa: E402
from rig.measure import Failed, say  # noqa: E402

# What the admin listener asks for: a secret of this run, which the gateway takes from its environment.
os.environ["BENCH_ADMIN_TOKEN"] = os.urandom(16).hex()
ADMIN = {"authorization": "Bearer " + os.environ["BENCH_ADMIN_TOKEN"]}
S4 = peers.SCENARIOS["S4"]
SIXTY = {"files": [os.path.join(HERE, "policies/sixty.rego"), os.path.join(HERE, "rig/sixty.data.yaml")],
         "entrypoint": "data.sixty.allow", "budget": {"time": "1s"}}


def with_candidates(policy, count, kept, time):
    """The scenario with this policy and so many candidates that say the same in another text."""
    def change(document, place, scenario):
        document["admin"] = {"address": f"127.0.0.1:{place.ports['admin']}",
                             "token": "env:BENCH_ADMIN_TOKEN"}
        if "policies" not in document:
            return
        if policy:
            document["policies"]["bench"] = json.loads(json.dumps(policy))
        own = document["policies"]["bench"]
        if not kept:
            own["decision_cache"] = False
        document["candidates"] = {}
        for number in range(count):
            files = []
            for path in own["files"]:
                with open(path) as file:
                    text = file.read()
                comment = "" if path.endswith(".yaml") else f"\n# Candidate {number}.\n"
                folder = place.path(f"candidate{number}")
                os.makedirs(folder, exist_ok=True)
                name = os.path.join(folder, os.path.basename(path))
                with open(name, "w") as file:
                    file.write(text + comment)
                files.append(name)
            document["candidates"][f"candidate{number}"] = {"of": "bench", "files": files}
        if time:
            document["candidate_time"] = time
    return change


ROWS = [
    ("10 lines, remembered", None, True),
    ("60 lines, remembered", SIXTY, True),
    ("60 lines, anew each time", SIXTY, False),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", default=os.path.join(os.path.dirname(HERE), "target/release/portcullis"))
    parser.add_argument("--load", help="a load generator that is built already")
    parser.add_argument("--dev", action="store_true", help="build the load generator without optimisation")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--time", help="candidate_time, instead of its default")
    parser.add_argument("--json", help="write the results here, too")
    options = parser.parse_args()
    options.tokens = 1000
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(options, folder)
        rig.new_ports()
        rig.prepare()
        print("load average before: %.2f %.2f %.2f" % os.getloadavg())
        with rig.upstream():
            for round_ in range(options.rounds):
                for label, policy, kept in ROWS:
                    for count in (0, 3):
                        say(f"round {round_ + 1}: {label}, {count} candidates")
                        change = with_candidates(policy, count, kept, options.time)
                        name = f"portcullis-{ROWS.index((label, policy, kept))}-{count}"
                        gateway = peers.Gateway("", options.gateway, name, change=change)
                        rig.new_ports_for_peer()
                        try:
                            with rig.start(gateway, S4) as group:
                                rig.wait_until_good(S4)
                                book = rig.time(gateway, S4, "h1", "1000", options.seconds, group=group)
                                book["candidates"] = told(rig.ports["admin"])
                        except Failed as failure:
                            say(f"  {failure}")
                            continue
                        results.setdefault(label, {}).setdefault(str(count), []).append(book)
    show(results)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


def told(port):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/candidates", headers=ADMIN)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)["candidates"]


def show(results):
    print(f"{'policy':<26} {'requests':>10} {'with three':>10} {'throughput':>10} {'CPU µs':>8} {'with three':>10} {'compared':>9}")
    for label, books in results.items():
        if len(books) < 2:
            continue
        rate = {count: statistics.median(b["per_second"] for b in those) for count, those in books.items()}
        cost = {count: statistics.median(b["cpu_seconds"] / b["requests"] * 1e6 for b in those)
                for count, those in books.items()}
        asked = [(c["compared"], c["compared"] + c["left_out"]) for b in books["3"] for c in b["candidates"]]
        share = sum(a for a, _ in asked) / max(sum(b for _, b in asked), 1)
        lost = rate["3"] / rate["0"] - 1
        print(f"{label:<26} {rate['0']:>10.0f} {rate['3']:>10.0f} {lost:>+10.1%} {cost['0']:>8.2f} {cost['3']:>10.2f} {share:>9.1%}")


if __name__ == "__main__":
    main()
