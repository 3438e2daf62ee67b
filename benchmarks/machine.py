"""What the benchmarks' run.py share: how programs are started, when the machine is idle, and what is said about it."""
import argparse
import json
import os
import platform
import re
import subprocess
import time

ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", ACCELERATE_USE_CPU="true")
disturbed = []  # programs that began while others used the cores


def options(description, **defaults):
    """The command line that all of them have; `defaults` are options with a number."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--python", help="a Python with torch and accelerate, to measure the peers (benchmarks/peers makes one)")
    parser.add_argument("--wait", type=float, default=60, metavar="S", help="before each program wait so many seconds, at most, for the cores to be idle (60)")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"({default})")
    given = parser.parse_args()
    describe(given.python)
    run.wait = given.wait
    return given


def run(*command, quiet=False):
    """What a program prints, started when the cores are idle. `quiet`: its stderr is shown only when it fails."""
    settle(command[0])
    done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}\n{done.stderr or ''}")
    return done.stdout


def mpirun(ranks, *command):
    return run("mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks, *command)


def torchrun(python, ranks, *command):
    return run(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *command, quiet=True)


def instructions(binary, arm, few=20, many=220):
    """Instructions of one step of `binary loop ARM STEPS`, by callgrind: repeatable, whatever else the machine does."""
    def whole(steps):
        done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, "loop", arm, str(steps)],
                              env=ENVIRONMENT, check=True, capture_output=True, text=True)
        return int(re.search(r"Collected : (\d+)", done.stderr)[1])

    return (whole(many) - whole(few)) / (many - few)


def rows(text):
    """The lines that are JSON."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def settle(name):
    end = time.monotonic() + run.wait
    while time.monotonic() < end:
        before = idle()
        time.sleep(1)
        after = idle()
        if after[0] - before[0] > 0.93 * (after[1] - before[1]):
            return
    if run.wait > 0:
        disturbed.append(name)


def idle():
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


def describe(python):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    model = re.search(r"model name\s*: (.*)", text)
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in text), "no AVX2")
    mpi = re.search(r"[\d.]+", subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout)
    print(f"{time.strftime('%Y-%m-%d')}; {len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}, {vectors}; Open MPI {mpi[0] if mpi else 'unknown'}", end="")
    if python:
        print("; Python's", subprocess.run([python, "-c", "import torch, accelerate; print('torch', torch.__version__, 'accelerate', accelerate.__version__)"],
                                           capture_output=True, text=True, check=True).stdout.strip(), end="")
    with open("/proc/loadavg", encoding="ascii") as file:
        print("; load", " ".join(file.read().split()[:3]), flush=True)


def verdict(missed):
    """Says which goals were missed; the exit code."""
    if disturbed:
        print(f"\n{len(disturbed)} programs began while others used the cores: treat times with care")
    print("\nmissed:\n  " + "\n  ".join(missed) if missed else "\nall goals hold")
    return 1 if missed else 0
