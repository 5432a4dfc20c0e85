"""Entry point: choose the sub-command, and turn errors into one sentence and an exit code.

0: done. 2: something the user gave is wrong. 130, 143: stopped by SIGINT, SIGTERM. 141: whoever read the output left.
"""

import atexit
import errno
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from hra_diffusion.cli.stopping import Stopped
from hra_diffusion.errors import HRAError
from hra_diffusion.text import nearest

COMMANDS = {
    "train": "teach a model a subject from a few images (DreamBooth)",
    "train-control": "teach a model to follow a condition, such as edges (ControlNet)",
    "generate": "draw images with an adapter",
    "evaluate": "measure an adapter",
    "evaluate-control": "measure whether a control is followed",
    "import-lora": "write the adapter nearest to a LoRA, and say how much was lost",
    "push": "publish an adapter on the Hugging Face hub",
    "merge": "write a whole model with adapters in its weights",
    "export-lora": "write an adapter as the exact LoRA for other tools",
    "inspect": "say what an adapter holds",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: hra-diffusion COMMAND [OPTIONS]\n")
        print("\n".join(f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()))
        print("\nhra-diffusion COMMAND --help lists the options of a command.")
        return 0
    if name not in COMMANDS:
        print(f"hra-diffusion: unknown command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    return run(importlib.import_module(f"hra_diffusion.cli.{name.replace('-', '_')}").main, arguments)


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a command's function; errors become messages on stderr."""
    _quiet_libraries()
    _seldom_look_for_garbage()
    try:
        command(arguments)
    except HRAError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        print(f"Error: {error.filename} cannot be used here: {error.strerror}.", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted: files that were complete are kept.", file=sys.stderr)
        return 130
    return 0


def _quiet_libraries() -> None:
    """Let only messages through that the user can act on; the environment still decides where it says otherwise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it names kernels that are for other processors
    warnings.formatwarning = lambda message, *_, **__: f"WARNING: {message}\n"


def _seldom_look_for_garbage() -> None:
    """Spare imported modules, which make little garbage: searching them is 40 % of the time to start and to end."""
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    sys.exit(main())
