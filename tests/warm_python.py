"""A Python that has imported the project already, which takes most of a short program's time: it runs others in forks.

Orders come as lines of JSON: a folder, the arguments of ``python``, and two files for what is printed. Each is run in a
process of its own, with a namespace of its own; the answer is a line with its exit code.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import hra_diffusion.training.controlnet
import hra_diffusion.training.dreambooth  # noqa: F401


def become(folder: str, arguments: list[str], *printed: str) -> None:
    """Do what ``python <arguments>`` does in a folder."""
    os.chdir(folder)
    for stream, path in enumerate((os.devnull, *printed)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    first, *rest = arguments
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = rest, ""
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).absolute().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(*json.loads(line))
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
