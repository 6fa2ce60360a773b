"""A service and a client of PyPI `websockets`; answers each line of JSON with one."""

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus


async def echo(socket):
    try:
        async for message in socket:
            if message == "close please":
                await socket.close(4002, "enough")
                return
            await socket.send(message)
    except ConnectionClosed:
        pass


def client(command):
    headers = {}
    if "authorization" in command:
        headers["authorization"] = command["authorization"]
    return connect(
        command["uri"],
        additional_headers=headers,
        subprotocols=["chat"],
        compression="deflate" if command.get("deflate", True) else None,
        max_size=None,
        proxy=None,
    )


async def run_echo(command):
    async with client(command) as socket:
        messages = ["hello", "", "h\u00e4llo" * 50_000, b"\x00\xff", os.urandom(1_000_000)]
        for message in messages:
            await socket.send(message)
            if await socket.recv() != message:
                return {"ok": False}
        # In fragments.
        await socket.send(["frag", "men", "ts"])
        if await socket.recv() != "fragments":
            return {"ok": False}
        pong = await socket.ping()
        await asyncio.wait_for(pong, 5)
        return {
            "ok": True,
            "deflate": len(socket.protocol.extensions) == 1,
            "protocol": socket.subprotocol,
        }


async def run_close(command):
    async with client(command) as socket:
        if command["from"] == "client":
            await socket.close(command["code"], "enough")
        else:
            await socket.send("close please")
            try:
                await asyncio.wait_for(socket.recv(), 5)
            except ConnectionClosed:
                pass
        return {"code": socket.close_code, "reason": socket.close_reason}


async def run_refused(command):
    try:
        async with client(command):
            return {"status": 101}
    except InvalidStatus as error:
        return {"status": error.response.status_code}


async def main():
    kept = {}
    async with serve(echo, "127.0.0.1", 0, subprotocols=["chat"], max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"port": port}), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            match command["do"]:
                case "echo":
                    answer = await run_echo(command)
                case "close":
                    answer = await run_close(command)
                case "refused":
                    answer = await run_refused(command)
                case "open":
                    kept["socket"] = await client(command)
                    answer = {"ok": True}
                case "wait":
                    socket = kept.pop("socket")
                    await asyncio.wait_for(socket.wait_closed(), 10)
                    answer = {"code": socket.close_code, "reason": socket.close_reason}
            print(json.dumps(answer), flush=True)


asyncio.run(main())
