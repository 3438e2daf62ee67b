#!/usr/bin/env python3
"""Kills examples/resume_training at random moments until it is done, again and again: what it goes on from is never older than the last
checkpoint that it has reported, and it ends as a run that was never killed.

  killed.py kill TIMES BINARY [MPIRUN...]     SIGKILL; at least so many; MPIRUN: the words that start two ranks
  killed.py kill_asynchronous TIMES BINARY [MPIRUN...]     the same of a run whose checkpoints are written by threads
  killed.py stop TIMES BINARY [MPIRUN...]     SIGTERM, SIGINT or SIGUSR1 to one rank, or SIGUSR1 to mpirun: all save behind the same step, and the
                                              exit code is 75
"""
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

mode, kills, binary, mpirun = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
arguments = ["asynchronous"] if mode == "kill_asynchronous" else []
signals = [signal.SIGKILL] if mode != "stop" else [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
command = [*mpirun, binary]
random.seed(20)


def loss_of_whole(folder):
    return re.search(r"done, loss (\S+)", subprocess.run([*command, folder, *arguments], check=True, capture_output=True, text=True, timeout=100).stdout)[1]


def ranks_of(process):
    """The processes that run the binary below a launcher."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if parent == process.pid and os.readlink(f"/proc/{entry}/exe") == os.path.realpath(binary):
                    found.append(int(entry))
            except OSError:
                pass
    return found or [process.pid]


with tempfile.TemporaryDirectory(prefix="accelerate_killed_") as folder:
    begin = time.monotonic()
    expected = loss_of_whole(os.path.join(folder, "reference"))
    seconds = time.monotonic() - begin
    killed = killed_while_saving = runs = 0
    again = loss_of_whole(os.path.join(folder, "reference"))  # as one that was killed behind its last step
    wrong = [] if again == expected else [f"run again behind its last step: loss {again}, expected {expected}"]
    while killed < kills and not wrong:
        runs += 1
        run = os.path.join(folder, f"run{runs}")
        reported = 0
        for attempt in range(40):
            process = subprocess.Popen([*command, run, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
            last = attempt == 39 or killed >= kills
            if not last:
                time.sleep(random.uniform(0.4, 1.0) * seconds)
                if process.poll() is None:
                    checkpoints = os.path.join(run, "checkpoints")
                    saving = os.path.isdir(checkpoints) and any(name.startswith(".tmp~") for name in os.listdir(checkpoints))
                    victim = random.choice(ranks_of(process))
                    try:
                        if mode == "stop" and mpirun and random.random() < 0.25:
                            os.kill(process.pid, signal.SIGUSR1)  # which mpirun forwards to all ranks
                        else:
                            os.kill(victim, random.choice(signals))
                        killed += mode != "stop"
                        killed_while_saving += saving
                    except ProcessLookupError:
                        pass
            begin = time.monotonic()
            out, err = process.communicate(timeout=100)
            if not last and time.monotonic() - begin > 10:
                wrong.append("the other rank did not notice for 10 s")
            if "asked to stop; run it again" in err:  # others came before or behind the loop
                killed += 1
                stops = set(re.findall(r"asked to stop; run it again to go on from .*?(checkpoint_\d+)", err))
                if process.returncode != 75 or len(stops) != 1:
                    wrong.append(f"exit code {process.returncode}, checkpoints {stops}\n{err[-2000:]}")
            went_on = re.search(r"goes on behind step (\d+)", out)
            trained = went_on or "saved step" in out or "done" in out  # else it was killed before it came to that
            if reported and trained and (not went_on or int(went_on[1]) < reported):
                wrong.append(f"run {runs}: step {reported} was reported as saved, but it went on {went_on[0] if went_on else 'from nothing'}\n{err[-2000:]}")
            reported = max([reported, *(int(step) for step in re.findall(r"saved step (\d+)", out))])
            done = re.search(r"done, loss (\S+)", out)
            if done:
                if done[1] != expected:
                    wrong.append(f"run {runs}: loss {done[1]}, expected {expected}")
                break
        else:
            wrong.append(f"run {runs} never ended\n{err[-2000:]}")
print(f"{killed} times {mode} in {runs} runs ({killed_while_saving} while a checkpoint was written): {'nothing lost, every run ends as one that was never killed' if not wrong else wrong}")
sys.exit(1 if wrong else 0)
