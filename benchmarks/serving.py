"""Requests per second of one pipeline with two adapters, by number of clients: `python benchmarks/serving.py`.

    --clients 1 2 4 16 --requests 16 --num_inference_steps 25 --model assets/emoji-sd

Each client sends one request after another, with tiger and teapot in turn. "in turn": each request has its adapter by
`using_hra_adapters`, threads wait for one another. "batched": the waiting requests are one batch, whose adapters are
bound to the prompts with their trigger words.
"""

import argparse
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from accelerate import PartialState
from measure import describe_machine, print_table

from hra_diffusion import generate_image, load_hra_weights, load_pipeline, using_hra_adapters
from hra_diffusion.resources import DATA

NAMES = ("tiger", "teapot")


def prompt_of(number: int) -> str:
    return f"a 3d render of a sks {NAMES[number % 2]}"


@contextmanager
def in_turn(pipe: Any, steps: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that generates the image of a request; calls of several threads take turns."""

    def request(number: int) -> None:
        with using_hra_adapters(pipe, NAMES[number % 2]):
            generate_image(pipe, prompt_of(number), number, num_inference_steps=steps)

    yield request


@contextmanager
def batched(pipe: Any, steps: int, largest: int = 16) -> Iterator[Callable[[int], None]]:
    """Yield a function that waits for the image of a request; waiting requests are generated as one batch."""
    waiting: queue.Queue[tuple[int, Future[None]] | None] = queue.Queue()

    def serve() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            while len(batch) < largest and not waiting.empty() and (other := waiting.get()) is not None:
                batch.append(other)
            prompts = [prompt_of(number) for number, _ in batch]
            generators = [torch.Generator().manual_seed(number) for number, _ in batch]
            with using_hra_adapters(pipe, NAMES, bind="prompt"):
                pipe(prompts, generator=generators, num_inference_steps=steps)
            for _, future in batch:
                future.set_result(None)

    def request(number: int) -> None:
        future: Future[None] = Future()
        waiting.put((number, future))
        future.result()

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield request
    finally:
        waiting.put(None)
        server.join()


def measure(request: Callable[[int], None], clients: int, requests: int) -> tuple[float, float, list[float]]:
    """Return the requests per second, the processor's seconds for a request, and the waiting times in seconds."""
    numbers, waits = count(), []

    def client(_: int) -> None:
        while (number := next(numbers)) < requests:
            began = time.perf_counter()
            request(number)
            waits.append(time.perf_counter() - began)

    began, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return requests / seconds, processor / requests, sorted(waits)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--model", default="assets/emoji-sd")
    options = parser.parse_args()
    print(describe_machine())
    pipe = load_pipeline(options.model).to(PartialState().device)
    pipe.set_progress_bar_config(disable=True)
    for name in NAMES:
        load_hra_weights(pipe, DATA / "assets" / "adapters" / name, name)
    rows = []
    for way in (in_turn, batched):
        with way(pipe, options.num_inference_steps) as request:
            request(0)
            for clients in options.clients:
                rate, processor, waits = measure(request, clients, options.requests)
                longest = waits[min(len(waits) - 1, round(0.95 * len(waits)))]
                wait = f"{statistics.median(waits):.1f} s"
                cells = (f"{rate:.2f}", f"{processor:.2f} s", wait, f"{longest:.1f} s")
                rows.append((way.__name__.replace("_", " "), clients, *cells))
    title = f"{options.requests} requests of {options.num_inference_steps} steps"
    heads = ("requests are generated", "clients", "images/s", "processor, an image", "median wait", "95 % wait")
    print_table(title, heads, rows)


if __name__ == "__main__":
    main()
