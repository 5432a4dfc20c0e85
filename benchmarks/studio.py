"""How long the studio takes to open, and to be idle again after a stop or a closed tab: `python benchmarks/studio.py`.

    --rounds 3        studios that are opened
    --stops 30        drawings that are stopped; as many tabs are closed

*served* is the time from the command to the page's first answer, *usable* to the Generate button in a browser that has
asked for it from then on, *drawn* to the first image of a request that was waiting: the weights are read by then.
A drawing is idle again within a step of it, and half a second, is the promise; both are told.
"""

import argparse
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from measure import describe_machine

from hra_diffusion.studio.engine.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.tabs.settings import SETTINGS

PROJECT = Path(__file__).resolve().parents[1]
PROMISED_TO_OPEN, PROMISED_AFTER_A_STEP = 10.0, 0.5
PROMPT = "a 3d render of a sks tiger on the beach"


@contextmanager
def opened(folder: Path) -> Iterator[tuple[str, float]]:
    """Start the studio; gives its address, and when it was started, as soon as the page is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--folder", str(folder), "--port", str(port)]
    address, start = f"http://127.0.0.1:{port}", time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(address, timeout=60).status_code == 200:
                    break
            if process.poll() is not None:
                raise SystemExit("The studio did not start: run python app.py to see why.")
            time.sleep(0.01)
        yield address, start
    finally:
        process.terminate()
        process.wait()


def seen(address: str) -> float | None:
    """Return when a browser shows the page's main button; None where there is no chromium."""
    if not (chromium := shutil.which("chromium")):
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for()
        found = time.monotonic()
        browser.close()
    return found


def opening(rounds: int) -> None:
    """Print how long the studio takes to be served, usable and drawn with."""
    from gradio_client import Client

    found: dict[str, list[float]] = {"served": [], "usable": [], "drawn": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as (address, start):
            found["served"].append(time.monotonic() - start)
            if (usable := seen(address)) is not None:
                found["usable"].append(usable - start)
            client = Client(address, verbose=False, download_files=folder)
            client.predict(prompt=PROMPT, adapters=[{"name": "tiger", "strength": 1}], api_name="/generate")
            found["drawn"].append(time.monotonic() - start)
    for name, times in found.items():
        if times:
            listed = ", ".join(f"{each:.1f}" for each in times)
            print(f"{name:8} {median(times):.1f} s ({listed}); promised: {PROMISED_TO_OPEN:.0f} s")


def idling(stops: int) -> None:
    """Print how long the model goes on after a stop, and after a closed tab, in the middle of a drawing."""
    from hra_diffusion.studio.engine.config import StudioConfig
    from hra_diffusion.studio.engine.session import Session
    from hra_diffusion.studio.page import build_page, launch_options

    with tempfile.TemporaryDirectory() as folder:
        session = Session(StudioConfig(folder=Path(folder)))
        page = build_page(session)
        _, address, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
        functions = {each.api_name: index for index, each in page.fns.items()}
        found: dict[str, list[tuple[float, float]]] = {"stop": [], "closed tab": []}
        for number in range(2 * stops):
            kind = ("stop", "closed tab")[number % 2]
            found[kind].append(ended(session, address, functions, stop=kind == "stop"))
        page.close()
        session.worker.close()
    for kind, times in found.items():
        late = max(idle - step for step, idle in times)
        print(
            f"{kind:10} {len(times)} times: a step takes {median(step for step, _ in times):.3f} s, the model is idle "
            f"after {median(idle for _, idle in times):.3f} s, at most {max(idle for _, idle in times):.3f}; "
            f"at most {late:.3f} s over a step, promised: {PROMISED_AFTER_A_STEP}"
        )


def ended(session: Any, address: str, functions: dict[str, int], *, stop: bool) -> tuple[float, float]:
    """Begin a drawing as a tab does, end it; returns the seconds of a step and those until the model is idle."""
    request = GenerateRequest(
        prompt=PROMPT, adapters=(AdapterUse(name="tiger"),), steps=150, count=16, width=128, height=128
    )
    values = request.to_json() | {"new_seed": False, "image": None, "control_image": None, "annotator": "own"}
    tab = {"session_hash": secrets.token_hex(6)}
    with ExitStack() as connections, httpx.Client(base_url=f"{address}gradio_api", timeout=60) as browser:
        connections.enter_context(browser.stream("GET", f"/heartbeat/{tab['session_hash']}"))
        asked = {"fn_index": functions["generate"], "data": [values[name] for name in SETTINGS]}
        browser.post("/queue/join", json=tab | asked).raise_for_status()
        events = connections.enter_context(browser.stream("GET", "/queue/data", params=tab)).iter_lines()
        next(line for line in events if "step 5 of" in line)
        begun = time.monotonic()
        next(line for line in events if "step 15 of" in line)
        step = (time.monotonic() - begun) / 10
        start = time.monotonic()
        if stop:
            stopping = tab | {"fn_index": functions["stop"], "data": []}
            httpx.post(f"{address}gradio_api/run/predict", json=stopping).raise_for_status()
        else:
            connections.close()
        while session.worker.pending:
            time.sleep(0.001)
        return step, time.monotonic() - start


def main() -> None:
    """Parse the command and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stops", type=int, default=30)
    options = parser.parse_args()
    print(describe_machine())
    if options.rounds:
        opening(options.rounds)
    if options.stops:
        idling(options.stops)


if __name__ == "__main__":
    main()
