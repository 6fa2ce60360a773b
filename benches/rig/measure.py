"""Starts processes on their cores and reads what they cost."""

import glob
import http.client
import json
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import time

START = 15


class Failed(Exception):
    """Something did not start or did not answer; the text says what."""


def free_ports(count):
    """Below the range that the kernel gives to clients, so that the load does not take them first."""
    held = []
    while len(held) < count:
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", random.randrange(12000, 32000)))
            held.append(one)
        except OSError:
            one.close()
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def family(root):
    """A process and all below it."""
    found = [root]
    for task in glob.glob(f"/proc/{root}/task/*/children"):
        try:
            with open(task) as file:
                for child in file.read().split():
                    found += family(int(child))
        except OSError:
            pass
    return found


def cpu(roots):
    """Seconds that all threads of the processes have run; threads that ended are missing."""
    total = 0
    for root in roots:
        for pid in family(root):
            for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                try:
                    with open(path) as file:
                        total += int(file.read().split()[0])
                except (OSError, IndexError):
                    pass
    return total / 1e9


def status(root, key):
    """A figure of /proc/PID/status in KiB, of the process and all below it."""
    total = 0
    for pid in family(root):
        try:
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(key + ":"))
        except OSError:
            pass
    return total


class Process:
    """A program on its cores, ended with the block."""

    def __init__(self, command, cores, log, environment=None, stdin=None, stdout=None, yields=False):
        """`yields`: any other process on its cores is let in at once (Linux's SCHED_IDLE)."""
        def settle():
            os.sched_setaffinity(0, cores)
            if yields:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        self.log = log
        self.name = os.path.basename(command[0])
        with open(log, "ab") as file:
            self.popen = subprocess.Popen(
                command, stdin=stdin, stdout=stdout or file, stderr=file, text=True,
                env={**os.environ, **(environment or {})}, start_new_session=True,
                preexec_fn=settle)
        self.pid = self.popen.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self.popen.wait()

    def tail(self):
        try:
            with open(self.log, errors="replace") as file:
                return " | ".join(file.read().strip().splitlines()[-3:])[-500:]
        except OSError:
            return ""

    def wait_for(self, port):
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self.popen.poll() is not None:
                raise Failed(f"{self.name} ended: {self.tail()}")
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Failed(f"{self.name} does not listen on {port}: {self.tail()}")


class Load(Process):
    """The load generator with its gate: warm, then a measured stretch, then the end."""

    def line(self, patience=120):
        if not select.select([self.popen.stdout], [], [], patience)[0]:
            raise Failed("the load generator is silent")
        line = self.popen.stdout.readline()
        if not line:
            self.popen.wait()
            raise Failed(f"the load generator ended: {self.tail()}")
        return line.strip()

    def go(self):
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()


def load(binary, arguments, cores, log, yields=False):
    return Load([binary, "run", "--gate"] + [str(a) for a in arguments], cores, log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, yields=yields)


def measured(binary, arguments, cores, log, roots):
    """The load's book, with the CPU time and memory of `roots` meanwhile."""
    with load(binary, arguments, cores, log) as running:
        if running.line() != "ready":
            raise Failed("the load generator is confused")
        before = cpu(roots)
        running.go()
        book = json.loads(running.line())
        used = cpu(roots) - before
        book["cpu_seconds"] = used
        book["cpu_us"] = used * 1e6 / max(book["requests"], 1)
        book["rss_kib"] = sum(status(root, "VmRSS") for root in roots)
        running.go()
        running.popen.wait(10)
    return book


def ask(port, path, tls=None, headers=None, method="GET"):
    """The status and the body of one request; status 0 when there is no answer."""
    if tls:
        context = ssl.create_default_context(cafile=tls["ca"])
        if tls.get("certificate"):
            context.load_cert_chain(tls["certificate"], tls["key"])
        connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
        # `localhost` may mean ::1 first.
        connection._create_connection = lambda *_, **__: socket.create_connection(("127.0.0.1", port), 5)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={"Host": "localhost", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("latin-1")
    except (OSError, http.client.HTTPException, ssl.SSLError):
        return 0, ""
    finally:
        connection.close()


def say(*words):
    print(*words, file=sys.stderr, flush=True)
