"""Two workers as those of torchrun, in forks of this process: without their time for imports.

    python tests/forked_launch.py examples/serve.py …

The workers are on the CPU and have torchrun's environment variables.
"""

import os
import runpy
import signal
import socket
import sys

WORKERS = 2


def run_worker(rank: int, port: int, arguments: list[str]) -> None:
    """Run a script with its arguments as the worker of a rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    os.environ["ACCELERATE_USE_CPU"] = "1"
    port, workers = free_port(), set()
    for rank in range(WORKERS):
        worker = os.fork()
        if worker == 0:
            run_worker(rank, port, sys.argv[1:])
            return
        workers.add(worker)
    while workers:
        worker, status = os.wait()
        workers.remove(worker)
        if status:
            for other in workers:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"A worker ended with exit code {os.waitstatus_to_exitcode(status)}.")


if __name__ == "__main__":
    main()
