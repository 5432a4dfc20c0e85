"""Entry point: choose the sub-command; errors become one sentence and an exit code.

0: done. 1: the doctor has findings. 2: wrong input. 129, 130, 143: stopped by SIGHUP, SIGINT, SIGTERM; 149: by
SIGBREAK of Windows. 141: the reader of the output, such as head, has ended.
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

from hra_diffusion.cli.progress_bars import ProgressBars
from hra_diffusion.cli.stopping import Stopped
from hra_diffusion.cli.terminal import flushed_output, is_of_output, prepare_streams, report
from hra_diffusion.errors import HRAError
from hra_diffusion.progress import reporting
from hra_diffusion.text import nearest
from hra_diffusion.version import __version__

COMMANDS = {
    "train": "train a subject from a few images (DreamBooth)",
    "train-control": "train a control from pairs, such as edges (ControlNet)",
    "generate": "generate images with an adapter",
    "evaluate": "measure an adapter's fidelity and drift",
    "evaluate-control": "measure how well images obey a control",
    "caption": "write captions of an image folder with an image-to-text model",
    "import-lora": "convert a LoRA to the nearest adapter, and report the loss",
    "extract": "make an adapter of the difference between two models",
    "push": "publish an adapter on the Hugging Face hub",
    "merge": "merge adapters into a base model",
    "export-lora": "export an adapter as an exact LoRA for other tools",
    "inspect": "describe an adapter",
    "compress": "lower the rank of an adapter, with a stated error",
    "compare": "compare two adapters, or search a folder for similar ones",
    "studio": "open the studio in a browser",
    "doctor": "check the installation, for a bug report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        return run(_print_help, ())
    if name == "--version":
        return run(lambda _: print(f"hra-diffusion {__version__}"), ())
    if name not in COMMANDS:
        prepare_streams()
        report(f"hra-diffusion: unknown command {name!r}{nearest(name, COMMANDS)}")
        return 2
    return run(importlib.import_module(f"hra_diffusion.cli.{name.replace('-', '_')}").main, arguments)


def _print_help(_: Sequence[str]) -> None:
    width = max(map(len, COMMANDS))
    print("usage: hra-diffusion COMMAND [OPTIONS]\n")
    print("\n".join(f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()))
    print("\nhra-diffusion COMMAND --help lists the options of a command; hra-diffusion --version prints the version.")


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run a command's function and return its exit code, 0 if it has none; errors become messages on stderr."""
    prepare_streams()
    _quiet_libraries()
    _tune_garbage_collection()
    try:
        with flushed_output(), reporting(ProgressBars()):
            return command(arguments) or 0
    except HRAError as error:
        report(f"Error: {error}")
        return 2
    except OSError as error:
        lost = is_of_output(error)
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended
            return 141
        if lost:
            report(f"Error: The output cannot be written: {error.strerror}.")
        elif error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
            report(f"Error: {error.filename} cannot be used here: {error.strerror}.")
        else:
            raise
        return 2
    except Stopped as stopped:
        report(f"\n{stopped}")
        return stopped.exit_code
    except KeyboardInterrupt:
        report("\nInterrupted: files that were complete are kept.")
        return 130


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
