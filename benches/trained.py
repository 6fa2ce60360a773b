#!/usr/bin/env python3
"""Builds the release binary with a profile of itself at work (profile-guided optimisation).

Three steps: a build that counts which of its branches are taken; the work of `benches/beside.py`, in
all its scenarios, with that build, which tells what a gateway does often and what it hardly ever does;
and the build that lays out its code by it. Needs what `cargo build --release` needs, Python 3.9, and
`llvm-profdata` of the compiler's own LLVM: `rustup component add llvm-tools`, or the package `llvm-NN`
of the distribution. Takes three times as long as a release build, and some minutes.

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


def build(host, flag, folder):
    """A release build with one more flag for the compiler. With a named target, build scripts go without it."""
    flags = f"{os.environ.get('RUSTFLAGS', '')} {flag}".strip()
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "portcullis", "--target", host,
                    "--target-dir", folder],
                   cwd=ROOT, check=True, env={**os.environ, "RUSTFLAGS": flags})
    return os.path.join(folder, host, "release/portcullis")


def work(binary, raw, load, seconds):
    """What it is trained by. Nothing here is measured: counting takes most of its time."""
    command = [sys.executable, os.path.join(ROOT, "benches/beside.py"), "--binary", binary, "--peer", "none",
               "--mode", "requests,handshakes,bodies,junk", "--scenario", "S0,S1,S2,S3,S4,S5", "--full", "--variants",
               "--rounds", "1", "--seconds", str(seconds), "--rate", "0", "--tokens", "6000"]
    if load:
        command += ["--load", load]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "LLVM_PROFILE_FILE": os.path.join(raw, "%m-%p.profraw")})


def say(text):
    print(f"==> {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", help="the load generator of the rig; built when not given")
    parser.add_argument("--seconds", type=float, default=1, help="of each kind of work (default: 1)")
    parser.add_argument("--profile", metavar="FILE", help="build by this profile, of an earlier run, and train no more")
    options = parser.parse_args()
    begun = time.monotonic()
    host, llvm, root = toolchain()
    profile = os.path.abspath(options.profile) if options.profile else os.path.join(FOLDER, "profile.profdata")
    if not options.profile:
        tool = profdata(host, llvm, root)
        raw = os.path.join(FOLDER, "raw")
        shutil.rmtree(raw, ignore_errors=True)
        os.makedirs(raw)
        say("1 of 3: a build that counts")
        counting = build(host, f"-Cprofile-generate={raw}", os.path.join(FOLDER, "counting"))
        say("2 of 3: its work")
        work(counting, raw, options.load, options.seconds)
        counts = glob.glob(os.path.join(raw, "*.profraw"))
        if not counts:
            raise SystemExit("the gateway has written no counts: did it end as it should?")
        subprocess.run([tool, "merge", "--output", profile, *counts], check=True)
    say("3 of 3: the build by its profile")
    built = build(host, f"-Cprofile-use={profile}", os.path.join(FOLDER, "build"))
    binary = os.path.join(FOLDER, "portcullis")
    shutil.copy2(built, binary)
    say(f"{binary} ({(time.monotonic() - begun) / 60:.0f} min)")


if __name__ == "__main__":
    main()
