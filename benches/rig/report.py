"""Tables, targets and the picture, from the results of one run."""

import html
import os
import statistics

from . import peers

GATEWAY = "portcullis"
# Who stands for what people run; `nginx-cache` is nginx with a cache that we wrote for it.
FORWARDERS = ("nginx", "haproxy")
STOCK = ("nginx", "haproxy", "envoy", "envoy-cache")
TOKENS = {"-": "", "1": ", one token", "1000": ", 1,000 tokens", "once": ", every token new (RS256)",
          "once-es256": ", every token new (ES256)"}
KINDS = {"h1": "HTTP/1.1", "h2": "HTTP/2"}


def median(books, *path):
    values = []
    for book in books or []:
        for key in path:
            book = book.get(key) if isinstance(book, dict) else None
        if book is not None:
            values.append(book)
    return statistics.median(values) if values else None


def spread(books, *path):
    values = [book[path[0]] for book in books or [] if path[0] in book]
    return f"{min(values):.1f}-{max(values):.1f}" if values else ""


class Results:
    def __init__(self, results):
        self.raw = results

    def cpu(self, cell, peer):
        return median(self.raw.get("requests", {}).get(cell, {}).get(peer), "cpu_us")

    def best(self, cell, names):
        found = [(self.cpu(cell, name), name) for name in names if self.cpu(cell, name)]
        return min(found) if found else (None, None)

    def of(self, mode, key, peer, *path):
        books = self.raw.get(mode, {}).get(key, {}).get(peer)
        return median(books, *path) if path else (statistics.median(books) if books else None)


def targets(results):
    """What was to be reached: text, measured, bound, `<=` or `>=`, and how it was told."""
    r = Results(results)
    rows = []

    def add(text, value, bound, told="", sign="<="):
        rows.append({"text": text, "value": value, "bound": bound, "sign": sign, "told": told,
                     "reached": None if value is None or bound is None else
                     value <= bound if sign == "<=" else value >= bound})

    def ratio(text, mine, other, name, bound, unit="µs"):
        value = mine / other if mine and other else None
        add(text, value, bound, f"{mine:.1f} against {other:.1f} {unit} ({name})" if value else "not measured")

    for scenario in ("S0", "S1"):
        for kind in ("h1", "h2"):
            cell = f"{scenario} {kind} -"
            other, name = r.best(cell, FORWARDERS)
            ratio(f"{scenario} over {KINDS[kind]}, against the lower of nginx and HAProxy",
                  r.cpu(cell, GATEWAY), other, name, 1.0)
            if r.cpu(cell, "portcullis-quiet"):
                ratio("... without a record of each request, as the peers are (no target)",
                      r.cpu(cell, "portcullis-quiet"), other, name, None)
    cell = "S4 h1 1000"
    mine = r.cpu(cell, GATEWAY)
    other, name = r.best("S1 h1 -", FORWARDERS)
    ratio("S4 over HTTP/1.1, 1,000 tokens, against forwarding alone (S1) by the lower of nginx and HAProxy",
          mine, other, f"{name}, S1", 1.0)
    other, name = r.best(cell, STOCK)
    ratio("S4, 1,000 tokens, against the best peer's S4", mine, other, name, 0.35)
    ratio("S4, 1,000 tokens, against Envoy with a policy engine beside it, engine's CPU counted",
          mine, r.cpu(cell, "envoy-engine"), "envoy-engine", 0.08)
    ratio("S4, a policy of 60 lines, decision cache off, against the best peer's S4",
          r.cpu(cell, "portcullis-60-uncached"), other, name, 0.7)
    if r.cpu(cell, "nginx-cache"):
        ratio("S4, 1,000 tokens, against nginx with a token cache that we wrote for it (no target)",
              mine, r.cpu(cell, "nginx-cache"), "nginx-cache", None)
    for tokens, algorithm in (("once", "RS256"), ("once-es256", "ES256")):
        cell2 = f"S2 h1 {tokens}"
        other, name = r.best(cell2, STOCK)
        ratio(f"S2, every token new ({algorithm}), against the best peer", r.cpu(cell2, GATEWAY), other, name, 0.9)
    if "cores" in results:
        if results.get("cores_by_rate"):
            one, two = (r.of("cores", n, GATEWAY, "per_second") for n in ("1", "2"))
            add("2 cores against 1, S4", two / one if one and two else None, 1.8,
                f"{one:.0f} and {two:.0f} req/s" if one and two else "", ">=")
        else:
            one, two = (r.of("cores", n, GATEWAY, "cpu_us") for n in ("1", "2"))
            add("2 cores against 1, S4", 2 * one / two if one and two else None, 1.8,
                f"{one:.1f} and {two:.1f} µs of CPU a request; the load shares the cores" if one and two else "", ">=")
    ratio("Audit on against off", mine, r.cpu(cell, "portcullis-quiet"), "off", 1.10)
    for key in ("full", "resumed", "full with client certificate", "resumed with client certificate"):
        found = [(r.of("handshakes", key, n, "cpu_us"), n) for n in ("nginx", "haproxy", "envoy")]
        other, name = min([f for f in found if f[0]], default=(None, None))
        ratio(f"TLS 1.3 handshake, {key}, with one request, against the best peer",
              r.of("handshakes", key, GATEWAY, "cpu_us"), other, name, 1.0)
    for key in ("down", "up"):
        found = [(r.of("bodies", key, n, "ms_per_gb"), n) for n in ("nginx", "envoy")]
        other, name = min([f for f in found if f[0]], default=(None, None))
        ratio(f"100 MiB bodies {key} over TLS, against the best of nginx and Envoy",
              r.of("bodies", key, GATEWAY, "ms_per_gb"), other, name, 1.0, "ms of CPU a GB")
    if "latency" in results:
        p99 = lambda name: r.of("latency", "S4 h1 1000", name, "latency_us", "p99")
        ratio(f"p99 of S4 at 70 % of the gateway's top rate ({results['latency_rate']} req/s), against Envoy's",
              p99(GATEWAY), p99("envoy"), "envoy", 1.0)
    for key in results.get("junk", {}):
        beside, alone = (r.of("junk", key, GATEWAY, which, "p99") for which in ("beside_us", "alone_us"))
        ratio(f"p99 of good callers beside a flood ({key}), against without", beside, alone, "without", 2.0)
    if "startup" in results:
        seconds = r.of("startup", "1,000 routes", GATEWAY, "seconds")
        add("Start to first answer, 1,000 routes, in seconds", seconds, 0.3)
        add("Memory then, in MB", r.of("startup", "1,000 routes", GATEWAY, "rss_kib") * 1.024e-3, 40)
    if "idle" in results:
        others = ", ".join(f"{n} {r.of('idle', 'KiB', n):.1f}" for n in results["idle"]["KiB"] if n != GATEWAY)
        add("An idle TLS connection, in KiB", r.of("idle", "KiB", GATEWAY), 12, others)
    if "keys" in results:
        book = results["keys"]["limiter"][GATEWAY][-1]
        add("A million limiter keys, in MB", book["bytes"] / book["keys"], 100, f"{book['keys']} keys sent")
    if "reload" in results:
        calm, busy = (r.of("reload", "5,000 routes", GATEWAY, which, "p99") for which in ("calm_us", "reloading_us"))
        add("Reload of 5,000 routes under load: p99 more by, in ms", (busy - calm) / 1e3, 2,
            f"{calm / 1e3:.2f} and {busy / 1e3:.2f} ms")
        before, peak = (r.of("reload", "5,000 routes", GATEWAY, which) for which in ("before_kib", "peak_kib"))
        add("... and the peak of memory against before", peak / before, 1.3, f"{before // 1024} and {peak // 1024} MiB")
    return rows


def shown(value):
    return "-" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def print_targets(results):
    print("\nTargets")
    for row in targets(results):
        if row["value"] is None and "requests" not in results:
            continue
        verdict = {True: "reached", False: "NOT YET", None: ""}[row["reached"]]
        bound = "" if row["bound"] is None else f"{row['sign']} {row['bound']:g}"
        print(f"  {verdict:8} {shown(row['value']):>7} {bound:8} {row['text']}  [{row['told']}]")


def title(cell):
    name, kind, tokens = cell.split(" ")
    return f"{name} over {KINDS[kind]}{TOKENS.get(tokens, tokens)}"


def print_tables(results):
    for cell, by_peer in results.get("requests", {}).items():
        name = cell.split(" ")[0]
        print(f"\n{title(cell)}  ({peers.SCENARIOS[name].says})")
        print(f"  {'':24}{'CPU µs':>8}{'ratio':>7}  {'of rounds':13}{'req/s':>8}{'ratio':>7}{'p50':>7}{'p99':>7}{'p99.9':>7}{'MiB':>7}{'ratio':>7}")
        for line in lines(results, cell, by_peer):
            if line["reason"]:
                print(f"  {line['peer']:24}cannot: {line['reason'][:100]}")
                continue
            print(f"  {line['peer']:24}{line['cpu']:8.2f}{line['cpu_ratio']:>7}  {line['spread']:13}{line['rps']:8.0f}"
                  f"{line['rps_ratio']:>7}{line['p50']:>7}{line['p99']:>7}{line['p99.9']:>7}{line['mib']:7.1f}{line['mib_ratio']:>7}")
    extra(results)


def lines(results, cell, by_peer):
    base = by_peer.get(GATEWAY) or by_peer.get(next(iter(results["peers"])))
    for peer in results["peers"]:
        books = by_peer.get(peer)
        if not books:
            reason = results["cannot"].get(f"{cell.split(' ')[0]} {peer}") or results["cannot"].get(f"{cell} {peer}")
            if reason and reason != "-":
                yield {"peer": peer, "reason": reason}
            continue

        def against(key):
            mine = median(base, key) if base else None
            return f"{median(books, key) / mine:.2f}" if mine else ""
        line = {"peer": peer, "reason": None, "cpu": median(books, "cpu_us"), "cpu_ratio": against("cpu_us"),
                "spread": spread(books, "cpu_us"), "rps": median(books, "per_second"),
                "rps_ratio": against("per_second"), "mib": median(books, "rss_kib") / 1024,
                "mib_ratio": against("rss_kib")}
        for part in ("p50", "p99", "p99.9"):
            value = median(books, "paced_us", part)
            line[part] = "" if value is None else f"{value:.0f}"
        yield line


def extra(results):
    r = Results(results)
    for mode, unit, path in (("handshakes", "CPU µs each, one request included", ("cpu_us",)),
                             ("bodies", "CPU ms a GB", ("ms_per_gb",)), ("idle", "KiB each", ())):
        keys = [k for k in results.get(mode, {}) if k != "connections"]
        if not keys:
            continue
        print(f"\n{mode}: {unit}")
        for key in keys:
            told = ", ".join(f"{n} {r.of(mode, key, n, *path):.1f}" for n in results[mode][key])
            print(f"  {key:34}{told}")
    if "latency" in results:
        print(f"\nlatency of S4 over HTTP/1.1 at {results['latency_rate']} req/s, µs: p50, p99, p99.9")
        for n in results["latency"]["S4 h1 1000"]:
            told = ", ".join(f"{r.of('latency', 'S4 h1 1000', n, 'latency_us', p):.0f}" for p in ("p50", "p99", "p99.9"))
            print(f"  {n:34}{told}")


# --- files ---

# Where the results begin in benches/README.md; what stands before is written by people.
RUN = "## The run\n"


def markdown(results):
    machine = results["machine"]
    out = [RUN,
           f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, load average "
           f"{machine['load']:.1f} before the start, {results['rounds']} rounds of {results['seconds']:g} s.\n"]
    out.append("| peer | version | |\n| --- | --- | --- |")
    for name, peer in results["peers"].items():
        out.append(f"| {name} | {peer['version'] or peer['missing']} | {peer['says']} |")
    out.append("\n![CPU per request](beside.svg)\n\n## Targets\n")
    out.append("| | measured | wanted | |\n| --- | --- | --- | --- |")
    for row in targets(results):
        verdict = {True: "reached", False: "**not yet**", None: ""}[row["reached"]]
        bound = "" if row["bound"] is None else f"{'at most' if row['sign'] == '<=' else 'at least'} {row['bound']:g}"
        out.append(f"| {row['text']} | {shown(row['value'])}{'; ' + row['told'] if row['told'] else ''} | {bound} | {verdict} |")
    out.append("\n## CPU per request\n\nLatencies in µs at "
               f"{results['rate']:g} requests a second, where they were measured. Ratios are to the gateway.")
    for cell, by_peer in results.get("requests", {}).items():
        out.append(f"\n### {title(cell)}\n\n{peers.SCENARIOS[cell.split(' ')[0]].says}\n")
        out.append("| | CPU µs | ratio | of rounds | req/s | ratio | p50 | p99 | p99.9 | MiB | ratio |\n|" + " --- |" * 11)
        for line in lines(results, cell, by_peer):
            if line["reason"]:
                out.append(f"| {line['peer']} | cannot: {line['reason'][:100].replace('|', '/')} |" + " |" * 9)
                continue
            name = f"**{line['peer']}**" if line["peer"] == GATEWAY else line["peer"]
            out.append(f"| {name} | {line['cpu']:.1f} | {line['cpu_ratio']} | {line['spread']} | {line['rps']:.0f} | "
                       f"{line['rps_ratio']} | {line['p50']} | {line['p99']} | {line['p99.9']} | {line['mib']:.1f} | {line['mib_ratio']} |")
    r = Results(results)
    for mode, heading, path in (
            ("handshakes", "New TLS 1.3 connections, CPU µs each, one request included", ("cpu_us",)),
            ("bodies", "100 MiB bodies over TLS, CPU ms a GB", ("ms_per_gb",)),
            ("idle", "Idle TLS connections, KiB each", ())):
        found = {k: v for k, v in results.get(mode, {}).items() if k != "connections"}
        if not found:
            continue
        names = [n for n in results["peers"] if any(n in v for v in found.values())]
        out.append(f"\n### {heading}\n\n| | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
        for key in found:
            cells = [r.of(mode, key, n, *path) for n in names]
            out.append(f"| {key} | " + " | ".join("" if c is None else f"{c:.1f}" for c in cells) + " |")
    if "latency" in results:
        out.append(f"\n### Latency of S4 over HTTP/1.1 at {results['latency_rate']} requests a second, µs\n\n"
                   "70 % of what the gateway does at most.\n\n| | p50 | p99 | p99.9 |\n| --- | --- | --- | --- |")
        for n in results["latency"]["S4 h1 1000"]:
            told = " | ".join(f"{r.of('latency', 'S4 h1 1000', n, 'latency_us', p):.0f}" for p in ("p50", "p99", "p99.9"))
            out.append(f"| {n} | {told} |")
    return "\n".join(out) + "\n"


STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.head { font-size: 15px; font-weight: 600 } .mute { fill: #59636e; font-size: 12px }
.peer { fill: #afb8c1 } .ours { fill: #0969da } .own { font-weight: 600 }
.line { stroke: #0969da; stroke-width: 1; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .mute { fill: #9198a1 } .peer { fill: #59636e } .ours { fill: #4493f8 }
  .line { stroke: #4493f8 }
}"""
SHOWN = {"portcullis": "Portcullis", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy",
         "envoy-cache": "Envoy, token cache", "envoy-engine": "Envoy + policy engine", "nginx-cache": "nginx, Lua token cache",
         "traefik": "Traefik", "caddy": "Caddy"}


def picture(results):
    r = Results(results)
    panels = [("Forwarding alone, over TLS", "S1, HTTP/1.1", "S1 h1 -"),
              ("All of zero trust: token, policy, limit, identity headers", "S4, HTTP/1.1 over TLS, 1,000 tokens", "S4 h1 1000")]
    left, width, row = 170, 760, 26
    most = max((r.cpu(cell, n) or 0 for _, _, cell in panels for n in SHOWN), default=1) or 1
    scale = (width - left - 70) / most
    body, y = [], 28
    ours = r.cpu("S4 h1 1000", GATEWAY)
    body.append(f'<text class="mute" x="0" y="{y - 10}">CPU per request in µs, one worker; lower is better</text>')
    top = y
    for head, sub, cell in panels:
        y += 22
        body.append(f'<text class="head" x="0" y="{y}">{head}</text><text class="mute" x="{width}" y="{y}" text-anchor="end">{sub}</text>')
        y += 10
        for name in sorted((n for n in SHOWN if r.cpu(cell, n)), key=lambda n: r.cpu(cell, n)):
            value = r.cpu(cell, name)
            mine = name == GATEWAY
            body.append(
                f'<text x="{left - 10}" y="{y + 17}" text-anchor="end"{" class=" + chr(34) + "own" + chr(34) if mine else ""}>{html.escape(SHOWN[name])}</text>'
                f'<rect class="{"ours" if mine else "peer"}" x="{left}" y="{y + 4}" width="{max(value * scale, 1):.1f}" height="{row - 8}" rx="2"/>'
                f'<text x="{left + value * scale + 6:.1f}" y="{y + 17}"{" class=" + chr(34) + "own" + chr(34) if mine else ""}>{value:.1f}</text>')
            y += row
        y += 12
    if ours:
        x = left + ours * scale
        body.append(f'<path class="line" d="M{x:.1f} {top + 30}V{y - 12}"/>')
    machine = results["machine"]
    y += 8
    body.append(f'<text class="mute" x="0" y="{y}">{html.escape(machine["date"])}, {html.escape(machine["cpu"])}; '
                'median of rounds; the dashed line is Portcullis doing all of it</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 10}" width="{width}" role="img" '
            f'aria-label="CPU per request beside peers"><style>{STYLE}</style>{"".join(body)}</svg>\n')


BEGIN, END = "<!-- benches/beside.py --report: begin -->", "<!-- end -->"


def summary(results):
    r = Results(results)
    out = [BEGIN, "", "![CPU per request](benches/beside.svg)", "",
           "| CPU µs a request, HTTP/1.1 | " + " | ".join(SHOWN[n] for n in ("portcullis", "nginx", "haproxy", "envoy", "envoy-cache", "envoy-engine")) + " |",
           "|" + " --- |" * 7]
    for cell, says in (("S0 h1 -", "forwarding"), ("S1 h1 -", "+ TLS 1.3"), ("S2 h1 1000", "+ tokens, identity headers"),
                       ("S3 h1 1000", "+ policy"), ("S4 h1 1000", "+ limit for each subject"),
                       ("S5 h1 1000", "+ client certificates"), ("S2 h1 once", "tokens, identity headers; every token new")):
        values = [r.cpu(cell, n) for n in ("portcullis", "nginx", "haproxy", "envoy", "envoy-cache", "envoy-engine")]
        if any(values):
            out.append(f"| {says} | " + " | ".join("" if v is None else f"{v:.1f}" for v in values) + " |")
    rows = [row for row in targets(results) if row["reached"] is not None]
    machine = results["machine"]
    out += ["", f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}. "
            f"{sum(row['reached'] for row in rows)} of {len(rows)} targets are reached; which, and how all of it was measured:",
            "[benches/README.md](benches/README.md).", "", END]
    return "\n".join(out)


def write(results, root):
    folder = os.path.join(root, "benches")
    about = os.path.join(folder, "README.md")
    with open(about) as file:
        text = file.read()
    with open(about, "w") as file:
        file.write(text[:text.index(RUN)] + markdown(results))
    with open(os.path.join(folder, "beside.svg"), "w") as file:
        file.write(picture(results))
    path = os.path.join(root, "README.md")
    with open(path) as file:
        text = file.read()
    if BEGIN in text:
        begin = text.index(BEGIN)
        text = text[:begin] + summary(results) + text[text.index(END, begin) + len(END):]
        with open(path, "w") as file:
            file.write(text)
