"""A Python with the project imported: it runs programs in forks, without the time for imports.

A request is a line of JSON: a folder, the arguments of ``python``, and two files for the program's output and errors.
Every request runs in a separate process with a separate namespace; the response is a line with the exit code.
"""

import gc
import json
import os
import runpy
import sys
from pathlib import Path

import hra_diffusion.training.controlnet
import hra_diffusion.training.dreambooth  # noqa: F401


def run_program(folder: str, arguments: list[str], *outputs: str) -> None:
    """Run ``python <arguments>`` in a folder, in this process."""
    os.chdir(folder)
    for stream, path in enumerate((os.devnull, *outputs)):
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
    gc.freeze()  # Else each child searches all imported modules when it ends.
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_program(*json.loads(line))
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
