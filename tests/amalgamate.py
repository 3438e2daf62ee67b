#!/usr/bin/env python3
"""tools/amalgamate gives the same bytes wherever and whenever it runs, those bytes are committed, and it refuses what would break them."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

tree = pathlib.Path(__file__).resolve().parent.parent
failed = []


def amalgamate(root, *arguments, **environment):
    return subprocess.run([sys.executable, root / "tools" / "amalgamate", *arguments], capture_output=True, text=True, cwd="/", env=dict(os.environ, **environment))


def expect(condition, text):
    print(f"{'ok' if condition else 'FAILED'}: {text}")
    if not condition:
        failed.append(text)


def stops(folder, name, text, words):
    """A tree whose header `name` holds `text` is refused with `words`."""
    copy = folder / "broken"
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "include" / "accelerate").mkdir(parents=True)
    (copy / "tools").mkdir()
    shutil.copy(tree / "tools" / "amalgamate", copy / "tools")
    (copy / "include" / "accelerate.hpp").write_text("#pragma once\n#include <accelerate/a.hpp>\n")
    (copy / "include" / "accelerate" / "a.hpp").write_text("#pragma once\n")
    (copy / "include" / "accelerate" / name).write_text(text)
    done = amalgamate(copy)
    expect(done.returncode != 0 and words in done.stderr and not (copy / "single_include").exists(), f"refused, with \"{words}\": {done.stderr.strip()}")


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy = folder / "elsewhere"
    for part in ("include", "tools"):
        shutil.copytree(tree / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    first = amalgamate(tree, "--output", folder / "first.hpp", TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")
    second = amalgamate(copy, "--output", folder / "second.hpp", TZ="Asia/Tokyo", LC_ALL="C.UTF-8", PYTHONHASHSEED="2")
    expect(first.returncode == 0 and second.returncode == 0, f"runs {first.stderr}{second.stderr}")
    expect((folder / "first.hpp").read_bytes() == (folder / "second.hpp").read_bytes(), "the same bytes from another folder, time zone, language and hash seed")
    expect(name.encode() not in (folder / "second.hpp").read_bytes() and str(tree).encode() not in (folder / "first.hpp").read_bytes(), "no path of a machine inside")
    check = amalgamate(tree, "--check")
    expect(check.returncode == 0, f"single_include/accelerate.hpp is that of these headers {check.stderr}")
    stops(folder, "a.hpp", "#pragma once\n#if 1\n#include <accelerate/b.hpp>\n#endif\n", "under #if")
    stops(folder, "a.hpp", "#pragma once\n#include <accelerate.hpp>\n", "include each other")
    stops(folder, "a.hpp", "#pragma once\n#include \"b.hpp\"\n", "write headers of ours as")
    stops(folder, "a.hpp", "#pragma once\n#include <accelerate/nowhere.hpp>\n", "not in include/")
sys.exit(1 if failed else 0)
