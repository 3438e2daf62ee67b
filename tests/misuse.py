#!/usr/bin/env python3
"""Wrong uses must not compile, and the compiler must say why: tests/misuse/*.cpp, each WRONG_name of theirs by itself.

  misuse.py BUILD [NAME...]   BUILD has compile_commands.json; NAME picks cases

A case passes when its compilation fails, the text beside its WRONG_name is printed, and the whole output has at most 20 lines. Each
file must compile as it stands. As it takes minutes, what passed is not compiled again until a header, a case, the command or the
compiler has changed.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
MOST_LINES = 20


def state(build):
    """A hash of everything that the result depends on, LibTorch's own headers excepted: their folder is in the command."""
    words, directory = command_of(build)
    found = hashlib.sha256(repr(words).encode())
    found.update(subprocess.run([words[0], "--version"], stdout=subprocess.PIPE, check=True).stdout)
    for file in [pathlib.Path(__file__), *sorted((HERE / "misuse").glob("*.cpp")), *sorted((HERE.parent / "include").rglob("*.hpp"))]:
        found.update(str(file).encode() + file.read_bytes())
    return found.hexdigest()


def command_of(build):
    """How this build compiles tests/accelerator.cpp, without its precompiled header, and where."""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    entry = next(e for e in entries if e["file"] == str(HERE / "accelerator.cpp"))
    words = shlex.split(entry["command"])
    words = words[:words.index("-o")]
    # CMake's own precompiled header goes: -include FILE for g++, -Xclang -include-pch -Xclang FILE -Xclang -include -Xclang FILE for clang
    kept = []
    for at, word in enumerate(words):
        if word in ("-Xclang", "-include", "-Winvalid-pch", "-g") or words[at - 1] in ("-Xclang", "-include"):
            continue
        kept.append(word)
    return kept, entry["directory"]


def compiler(build):
    """That command, checking the syntax only, and a precompiled header that has the library."""
    kept, directory = command_of(build)
    header = build / "tests" / "misuse" / "all.hpp"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("#include <torch/torch.h>\n\n#include <accelerate.hpp>\n", encoding="utf-8")
    compiled = header.with_name("all.hpp.pch" if "clang" in pathlib.Path(kept[0]).name else "all.hpp.gch")
    subprocess.run([*kept, "-Wno-pragma-once-outside-header", "-x", "c++-header", str(header), "-o", str(compiled)], cwd=directory, check=True)
    return [*kept, "-fsyntax-only"], str(header), directory


def compile_file(command, file, *flags):
    words, header, directory = command
    own = re.search(r"^// flags: (.*)", file.read_text(encoding="utf-8"), re.M)
    words = [*words, *own[1].split()] if own else [*words, "-include", header]  # other macros do not go with the precompiled header
    done = subprocess.run([*words, *flags, str(file)], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, LC_ALL="C"))
    return done.returncode, done.stdout


def lacks(command, file):
    """A header that the file says it needs (`// needs: NAME`) and that is not there."""
    needed = re.search(r"^// needs: (\S+)", file.read_text(encoding="utf-8"), re.M)
    words, _, directory = command
    if needed and subprocess.run([*words, "-E", "-x", "c++", "-"], cwd=directory, input=f"#include <{needed[1]}>\n", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True).returncode != 0:
        return needed[1]
    return None


def judge(command, file, name, expected):
    status, text = compile_file(command, file, "-DWRONG", f"-DWRONG_{name}")
    lines = len(text.splitlines())
    flat = " ".join(text.split())
    problems = []
    if status == 0:
        problems.append("it compiles")
    elif expected not in flat:
        problems.append(f"the text is missing: {expected}")
    if lines > MOST_LINES:
        problems.append(f"{lines} lines")
    return name, lines, problems, text


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip())
        return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
    build, wanted, failed = pathlib.Path(sys.argv[1]).absolute(), set(sys.argv[2:]), 0
    passed = build / "tests" / "misuse" / "passed.txt"
    if not wanted and passed.is_file() and passed.read_text(encoding="utf-8") == state(build):
        print("nothing has changed since all of it passed")
        return 0
    command = compiler(build)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        right, wrong = {}, []
        for file in sorted((HERE / "misuse").glob("*.cpp")):
            if missing := lacks(command, file):
                print(f"{file.name} is left out: {missing} is not there")
                continue
            cases = re.findall(r"WRONG_(\w+)\)?  // (.+)", file.read_text(encoding="utf-8"))
            if not wanted:
                right[file] = pool.submit(compile_file, command, file)
            wrong += [pool.submit(judge, command, file, *case) for case in cases if not wanted or case[0] in wanted]
        for file, future in right.items():
            status, text = future.result()
            failed += status != 0 or bool(text)
            print(f"{file.name} as it stands: {'compiles' if status == 0 and not text else text}")
        for future in wrong:
            name, lines, problems, text = future.result()
            failed += bool(problems)
            print(f"{name:<34} {lines:3d} lines  {'; '.join(problems) or 'ok'}", flush=True)
            if problems or wanted:
                print(text)
    print(f"{len(wrong) + len(right)} compilations, {failed} not as they should be")
    if not wanted:
        passed.unlink(missing_ok=True)
        if not failed:
            passed.write_text(state(build), encoding="utf-8")
    return 1 if failed else 0


sys.exit(main())
