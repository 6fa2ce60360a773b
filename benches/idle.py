#!/usr/bin/env python3
"""Holds many connections open and says what each costs a gateway in memory.

    idle.py PID HOST:PORT COUNT [--plain] [--silent] [--h2]

Opens COUNT connections, sends one request on each (unless --silent: then they only shake hands),
waits until all is quiet and prints the growth of the resident memory of PID per connection.
Needs `ulimit -n` above COUNT here and in the gateway, and bounds on its listener that let so many in.
"""

import asyncio
import os
import resource
import ssl
import sys

REQUEST = b"GET /open/v1/orders/42 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n" \
    b"Authorization: Bearer " + b"x" * 700 + b"\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# HEADERS of stream 1 with END_STREAM and END_HEADERS: GET, http(s), /, :authority localhost.
BLOCK = bytes([0x82, 0x87, 0x44, 0x04]) + b"/ope" + bytes([0x41, 0x09]) + b"localhost"
GET_H2 = len(BLOCK).to_bytes(3, "big") + bytes([1, 5, 0, 0, 0, 1]) + BLOCK


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


async def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    flags = {word for word in sys.argv[1:] if word.startswith("--")}
    pid, (host, port), count = int(words[0]), words[1].rsplit(":", 1), int(words[2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tls = None
    if "--plain" not in flags:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.set_alpn_protocols(["h2"] if "--h2" in flags else ["http/1.1"])
    held, gate = [], asyncio.Semaphore(64)

    async def one():
        async with gate:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, limit=2048)
            if "--h2" in flags:
                writer.write(PREFACE + (b"" if "--silent" in flags else GET_H2))
                await reader.read(1 << 16)
                await asyncio.sleep(0.02)
            elif "--silent" not in flags:
                writer.write(REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                               if line.startswith(b"content-length")), 0)
                await reader.readexactly(length)
            held.append(writer)

    for _ in range(min(100, count // 10)):  # what the first requests bring in is no connection's
        await one()
    await asyncio.sleep(1)
    before, already = resident(pid), len(held)
    await asyncio.gather(*(one() for _ in range(count)))
    for wait in (1, 5):
        await asyncio.sleep(wait)
        grown = resident(pid) - before
        print(f"{wait} s after: {len(held) - already} connections, {grown} KiB, "
              f"{grown / count:.1f} KiB each (process {resident(pid)} KiB)", flush=True)
    os._exit(0)


asyncio.run(main())
