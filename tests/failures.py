#!/usr/bin/env python3
"""What a job does when one rank misbehaves: everyone is gone in time, the terminal says why, nothing stays behind.

  failures.py MISBEHAVE_BINARY MPIRUN...     (the command line that starts two ranks)
"""
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time

binary, mpirun = sys.argv[1], sys.argv[2:]
temporary = tempfile.TemporaryDirectory(prefix="accelerate_failures_")  # where ranks write their last operations
environment = dict(os.environ, TMPDIR=temporary.name, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
# A process that is left from within holds what its stack and MPI hold: no leak, whatever a sanitizer says.
environment["ASAN_OPTIONS"] = environment.get("ASAN_OPTIONS", "") + ":detect_leaks=0"

# mode: seconds from start to the end of the last process (2 s of them are the start), exit codes, what the terminal must show
cases = {
    "throw": (7, None, ["rank 1", "the dog ate batch 20"]),
    "kill": (7, None, ["rank 1", "signal 9"]),
    "stuck": (10, None, ["E_DEADLINE", "rank 1"]),
    "leave": (7, None, ["rank 1"]),
    "exit": (7, None, ["rank 1 is gone", "exit"]),
    "exit_all": (7, 0, []),
    "child": (7, 0, ["rank 0 came to the end", "rank 1 came to the end"]),
    "shapes": (7, 76, ["E_COLLECTIVE_MISMATCH", "rank 0", "rank 1"]),
    "dtypes": (7, 76, ["E_COLLECTIVE_MISMATCH", "rank 0", "rank 1"]),
    "collective": (7, 76, ["E_COLLECTIVE_MISMATCH", "barrier", "broadcast"]),
    "empty": (7, 65, ["E_DATA", "empty"]),
    "text": (7, None, ["/nonexistent/text"]),
}


def shared_memory():
    """What lies in /dev/shm, but for the segments of Open MPI 5 itself, which leaves them there after every MPI_Abort (Open MPI 4 does not)."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("vader_segment.", "sm_segment."))}


def processes(mode):
    """Processes of this case, by what the kernel says they execute."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as words:
                if os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(binary) and words.read().split(b"\0")[1:2] == [mode.encode()]:
                    found.append(int(pid))
        except OSError:
            pass
    return found


def outcome(mode):
    """A line about this case, what was printed, and whether something is wrong."""
    limit, code, texts = cases[mode]
    begin = time.monotonic()
    done = subprocess.run([*mpirun, binary, mode], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - begin
    output = done.stdout + done.stderr
    problems = [f"\"{text}\" is not on the terminal" for text in texts if text not in output]
    if code is None and done.returncode == 0:
        problems.append("exit code 0")
    if code is not None and done.returncode != code:
        problems.append(f"exit code {done.returncode}, expected {code}")
    if seconds > limit:
        problems.append(f"took {seconds:.1f} s, limit {limit}")
    if orphans := processes(mode):
        problems.append(f"orphans {orphans}")
    return f"{mode:<11} {seconds:5.1f} s  rc {done.returncode:<3}  {'ok' if not problems else '; '.join(problems)}", output, bool(problems)


failed = 0
before = shared_memory()
with concurrent.futures.ThreadPoolExecutor(3) as lanes:  # most of a case is waiting
    for line, output, wrong in lanes.map(outcome, cases):
        print(line, flush=True)
        if wrong:
            failed += 1
            print(output)
if left := shared_memory() - before:
    failed += 1
    print(f"left in /dev/shm: {left}")
sys.exit(1 if failed else 0)
