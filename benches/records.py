#!/usr/bin/env python3
"""Makes many decision records of a few, for `portcullis policy replay`.

    python3 benches/records.py SEEDS OUT COUNT

SEEDS are records that a gateway wrote (`audit.sink`: a file). Each is written again and again in turn, with
a request id, a decision id and a time of its own, in the record and in its input; a name ending in `.gz`
packs them. What a policy answers by the time or by chance is then another answer than the one recorded.
"""

import gzip
import json
import sys
import time

START_NS = 1_795_341_600_000_000_000


def template(line):
    """The line in pieces: between them go the id, the decision's id, and the time in three forms."""
    record = json.loads(line)
    holes = {
        record["request_id"]: "id",
        record.get("decision_id"): "decision",
        record["time"]: "time",
        str(record["received_at_ns"]): "ns",
    }
    request = (record.get("input") or {}).get("request", {})
    holes[request.get("received_at")] = "nanos"
    holes.pop(None, None)
    pieces = [line.rstrip("\n")]
    for text, hole in holes.items():
        parts = []
        for piece in pieces:
            if isinstance(piece, tuple):
                parts.append(piece)
                continue
            for at, part in enumerate(piece.split(text)):
                if at:
                    parts.append((hole,))
                parts.append(part)
        pieces = parts
    return pieces


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    seeds, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(seeds, encoding="ascii") as file:
        templates = [template(line) for line in file if line.startswith('{"version":2')]
    if not templates:
        sys.exit(f"{seeds} has no records of version 2")
    opened = gzip.open if out.endswith(".gz") else open
    with opened(out, "wt", encoding="ascii", newline="\n") as file:
        second, stamp = None, ""
        for number in range(count):
            ns = START_NS + number * 1_000_000
            if second != ns // 1_000_000_000:
                second = ns // 1_000_000_000
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            millis = ns // 1_000_000 % 1000
            values = {
                "id": f"{number:032x}",
                "decision": f"{number + (1 << 100):032x}",
                "time": f"{stamp}.{millis:03d}Z",
                "nanos": f"{stamp}.{millis:03d}Z",
                "ns": str(ns),
            }
            pieces = templates[number % len(templates)]
            file.write("".join(p if isinstance(p, str) else values[p[0]] for p in pieces))
            file.write("\n")


if __name__ == "__main__":
    main()
