#!/usr/bin/env python3
"""Builds the release binary with a profile of itself at work (profile-guided optimisation).

Three steps: a build that counts which of its branches are taken; the work of `benches/beside.py`, in
all its scenarios, with that build, which tells what a gateway does often and what it hardly ever does;
and the build that lays out its code by it. Needs what `cargo build --release` needs, Python 3.9, and
`llvm-profdata` of the compiler's own LLVM: `rustup component add llvm-tools`, or the package `llvm-NN`
of the distribution. Takes three times as long as a release build, and some minutes.

Where `llvm-bolt` is to be had (package `bolt-NN`) there are two steps more: the binary's own work once
again, and its code moved so that what runs one after the other also stands so. `--no-bolt` leaves them
out. Only what the Rust compiler made, and the allocator, is moved: cryptography stays as it is.

The binary is `trained/portcullis` in cargo's target folder. It does what the other one does.
"""

import argparse
import glob
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
FOLDER = os.path.join(TARGET, "trained")
# Names of the Rust compiler's (both its ways of making them), and of the allocator's.
MOVED = ["-funcs=_ZN.*,_R.*,mi_.*,_mi_.*"]


def toolchain():
    """The host's triple, the number of the compiler's LLVM, and the compiler's folder."""
    told = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    facts = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    root = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    return facts["host"], facts["LLVM version"].split(".")[0], root


def profdata(host, llvm, root):
    """The tool that puts counts together. One of an older LLVM cannot read them."""
    own = os.path.join(root, "lib/rustlib", host, "bin/llvm-profdata")
    for tool in (os.environ.get("LLVM_PROFDATA"), own, shutil.which(f"llvm-profdata-{llvm}"),
                 f"/usr/lib/llvm-{llvm}/bin/llvm-profdata"):
        if tool and os.access(tool, os.X_OK):
            return tool
    raise SystemExit(f"there is no llvm-profdata of LLVM {llvm}: `rustup component add llvm-tools` brings it, or "
                     f"the package llvm-{llvm} of the distribution; or name it in LLVM_PROFDATA")


def mover(llvm):
    """The tool that moves code, and the one that puts its counts together; `None` without them."""
    for bolt in (shutil.which(f"llvm-bolt-{llvm}"), f"/usr/lib/llvm-{llvm}/bin/llvm-bolt", shutil.which("llvm-bolt")):
        if bolt and os.access(bolt, os.X_OK):
            folder = os.path.dirname(os.path.realpath(bolt))
            tools = [os.path.join(folder, name) for name in ("llvm-bolt", "merge-fdata")]
            if all(os.access(tool, os.X_OK) for tool in tools):
                return tools
    return None


def build(host, flag, folder):
    """A release build with more flags for the compiler. With a named target, build scripts go without them."""
    flags = f"{os.environ.get('RUSTFLAGS', '')} {flag}".strip()
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "portcullis", "--target", host,
                    "--target-dir", folder],
                   cwd=ROOT, check=True, env={**os.environ, "RUSTFLAGS": flags})
    return os.path.join(folder, host, "release/portcullis")


def rig(binary, load, *options, **environment):
    """Sends a gateway the rig's work; ends when it lets through what it should refuse, or the other way."""
    command = [sys.executable, os.path.join(ROOT, "benches/beside.py"), "--binary", binary, "--peer", "none", *options]
    if load:
        command += ["--load", load]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def work(binary, raw, load, seconds):
    """What it is trained by. Nothing here is measured: counting takes most of its time."""
    rig(binary, load, "--mode", "requests,handshakes,bodies,junk", "--scenario", "S0,S1,S2,S3,S4,S5", "--full",
        "--variants", "--rounds", "1", "--seconds", str(seconds), "--rate", "0", "--tokens", "6000",
        LLVM_PROFILE_FILE=os.path.join(raw, "%m-%p.profraw"))


def move(tools, binary, folder, load, seconds):
    """The binary with its code in the order of its work. What is not listed stays where it is."""
    bolt, merge = tools
    counts, counting, moved = (os.path.join(folder, name) for name in ("moves", "counting-moves", "moved"))
    shutil.rmtree(counts, ignore_errors=True)
    os.makedirs(counts)

    def run(*command):
        # Its warnings are about assembly, which it leaves alone.
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{os.path.basename(command[0])} failed:\n{done.stderr or done.stdout}")

    run(bolt, binary, "-o", counting, "-instrument", *MOVED,
        f"--instrumentation-file={os.path.join(counts, 'of')}", "--instrumentation-file-append-pid")
    work(counting, counts, load, seconds)
    told = glob.glob(os.path.join(counts, "of.*.fdata"))
    if not told:
        raise SystemExit("the gateway has written no counts of its moves: did it end as it should?")
    run(merge, *told, "-o", os.path.join(counts, "all"))
    run(bolt, binary, "-o", moved, f"-data={os.path.join(counts, 'all')}", *MOVED, "-reorder-blocks=ext-tsp",
        "-reorder-functions=cdsort", "-split-functions", "-split-all-cold", "-split-eh", "-icf=safe")
    return moved


def say(text):
    print(f"==> {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", help="the load generator of the rig; built when not given")
    parser.add_argument("--seconds", type=float, default=1, help="of each kind of work (default: 1)")
    parser.add_argument("--profile", metavar="FILE", help="build by this profile, of an earlier run, and train no more")
    parser.add_argument("--no-bolt", action="store_true", help="leave the code where the compiler puts it")
    options = parser.parse_args()
    begun = time.monotonic()
    host, llvm, root = toolchain()
    tools = None if options.no_bolt else mover(llvm)
    steps = 5 if tools else 3
    profile = os.path.abspath(options.profile) if options.profile else os.path.join(FOLDER, "profile.profdata")
    if not options.profile:
        tool = profdata(host, llvm, root)
        raw = os.path.join(FOLDER, "raw")
        shutil.rmtree(raw, ignore_errors=True)
        os.makedirs(raw)
        say(f"1 of {steps}: a build that counts")
        counting = build(host, f"-Cprofile-generate={raw}", os.path.join(FOLDER, "counting"))
        say(f"2 of {steps}: its work")
        work(counting, raw, options.load, options.seconds)
        counts = glob.glob(os.path.join(raw, "*.profraw"))
        if not counts:
            raise SystemExit("the gateway has written no counts: did it end as it should?")
        subprocess.run([tool, "merge", "--output", profile, *counts], check=True)
    say(f"3 of {steps}: the build by its profile")
    # To move code one has to know all places that say where it is.
    linked = " -Clink-arg=-Wl,--emit-relocs" if tools else ""
    built = build(host, f"-Cprofile-use={profile}{linked}", os.path.join(FOLDER, "build"))
    if tools:
        say(f"4 and 5 of {steps}: its work again, and its code in that order")
        built = move(tools, built, FOLDER, options.load, options.seconds)
    elif not options.no_bolt:
        say(f"there is no llvm-bolt of LLVM {llvm} (package bolt-{llvm}): the code stays where the compiler put it")
    say("what came of it, before the rig's checks")
    rig(built, options.load, "--smoke")
    binary = os.path.join(FOLDER, "portcullis")
    shutil.copy2(built, binary)
    say(f"{binary} ({(time.monotonic() - begun) / 60:.0f} min)")


if __name__ == "__main__":
    main()
