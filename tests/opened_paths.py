#!/usr/bin/env python3
"""Under strace, the tests that open hostile folders and files open nothing outside the folders that they make.

  opened_paths.py BINARY TAG...      exit code 77: there is no strace, or it may not trace
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

binary, tags = sys.argv[1], sys.argv[2:]
if not shutil.which("strace"):
    print("skipped: there is no strace")
    sys.exit(77)
with tempfile.TemporaryDirectory(prefix="accelerate_opened_") as folder:
    trace = os.path.join(folder, "trace")
    done = subprocess.run(["strace", "-f", "-qq", "-y", "-e", "trace=open,openat,openat2,execve", "-o", trace, binary, ",".join(f"[{tag}]" for tag in tags)], capture_output=True, text=True, env=dict(os.environ, TMPDIR=folder))
    if not os.path.exists(trace) or os.path.getsize(trace) == 0:
        print("skipped: strace may not trace here:", done.stderr.strip()[-200:])
        sys.exit(77)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    calls = opened = 0
    wrong = []
    with open(trace, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            call = re.search(r'(open|openat|openat2)\((?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', line)
            if "execve" in line and calls:
                wrong.append(line.strip())
            if not call:
                continue
            calls += 1
            path = os.path.normpath(os.path.join(call[2] or "", call[3]))
            # What the loader and the C library open for themselves; the test looks at its own memory in /proc/self.
            if path.startswith(("/proc/", "/sys/", "/dev/")) or re.search(r"\.so(\.|$)|/etc/ld\.so|/glibc-hwcaps|/locale|gconv", path) or "= -1 ENOENT" in line:
                continue
            opened += 1
            if not os.path.realpath(os.path.dirname(path)).startswith(os.path.realpath(folder)):
                wrong.append(line.strip())
    print(f"{calls} calls, {opened} of them on files of the tests, {len(wrong)} outside their folders")
    print("\n".join(wrong[:20]))
    sys.exit(1 if wrong or opened < 100 else 0)
