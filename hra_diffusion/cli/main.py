"""Entry point: choose the sub-command; errors become one sentence and an exit code.

0: done. 2: wrong input. 129, 130, 143: stopped by SIGHUP, SIGINT, SIGTERM; 149: by SIGBREAK of Windows. 141: the reader
of the output, such as head, has ended.
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
from contextlib import suppress

from hra_diffusion.cli.stopping import Stopped
from hra_diffusion.cli.terminal import spell_unknown_characters
from hra_diffusion.errors import HRAError
from hra_diffusion.text import nearest
from hra_diffusion.version import __version__

COMMANDS = {
    "train": "train a subject from a few images (DreamBooth)",
    "train-control": "train a control from pairs, such as edges (ControlNet)",
    "generate": "generate images with an adapter",
    "evaluate": "measure an adapter's fidelity and drift",
    "evaluate-control": "measure how well images obey a control",
    "import-lora": "convert a LoRA to the nearest adapter, and report the loss",
    "push": "publish an adapter on the Hugging Face hub",
    "merge": "merge adapters into a base model",
    "export-lora": "export an adapter as an exact LoRA for other tools",
    "inspect": "describe an adapter",
    "studio": "open the studio in a browser",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    spell_unknown_characters()
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: hra-diffusion COMMAND [OPTIONS]\n")
        print("\n".join(f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()))
        print(
            "\nhra-diffusion COMMAND --help lists the options of a command; hra-diffusion --version prints the version."
        )
        return 0
    if name == "--version":
        print(f"hra-diffusion {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"hra-diffusion: unknown command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    return run(importlib.import_module(f"hra_diffusion.cli.{name.replace('-', '_')}").main, arguments)


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a command's function; errors become messages on stderr."""
    spell_unknown_characters()
    _quiet_libraries()
    _tune_garbage_collection()
    try:
        command(arguments)
    except HRAError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        print(f"Error: {error.filename} cannot be used here: {error.strerror}.", file=sys.stderr)
        return 2
    except Stopped as stopped:
        with suppress(OSError):  # the terminal was closed
            print(f"\n{stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted: files that were complete are kept.", file=sys.stderr)
        return 130
    return 0


def _quiet_libraries() -> None:
    """Silence messages without use for the user; environment variables override this."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports kernels of other processors
    warnings.formatwarning = lambda message, *_, **__: f"WARNING: {message}\n"


def _tune_garbage_collection() -> None:
    """Collect garbage rarely: searching imported modules takes 40 % of the time to start and to exit."""
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    sys.exit(main())
