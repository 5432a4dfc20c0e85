"""Faults of files and requests: what the readers, the studio and the writers do about them.

Run it with `python benchmarks/faults.py`.

    --mutations 1000  mutated files of each kind
    --calls 100       random calls of each of the studio's endpoints
    --seed 0          of all random numbers
    --parts …         files, names, calls, disks

*refused*: an error of the project, in one sentence; *other*: any other exception, which is a fault. A call is *other*
if the studio has to log it as unexpected, or answers with 5xx. Disks fail at every write, one after the other: from
then on, every file that is opened for writing, created, renamed or linked in the folder fails. A file that is left
behind is a fault, too; a kill counts as *refused*.
"""

import argparse
import contextlib
import errno
import io
import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from measure import describe_machine
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion import export_lora, load_hra_weights, merge_hra, unload_hra_weights
from hra_diffusion.errors import HRAError
from hra_diffusion.formats.files import tidy
from hra_diffusion.formats.folders import run_settings
from hra_diffusion.formats.lora import read_lora
from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.pipelines.components import models
from hra_diffusion.pipelines.fitting import adaptable_modules
from hra_diffusion.studio.engine.adapters.entry import read_entry
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.exporting import _unpack
from hra_diffusion.studio.engine.images.metadata import read_request
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import read_upload

PROJECT = Path(__file__).resolve().parents[1]
ADAPTER, BASE = PROJECT / "assets" / "adapters" / "tiger", PROJECT / "assets" / "emoji-sd"
ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 1.5, 1e300, 10**400, "", "x", "\ud800", "a\0b", "../../x", "(a|a)*b", "[" * 2000, [], [[]]),
    *(
        {},
        {"a": {}},
        ["q"] * 20_000,
        "x" * 100_000,
        float("nan"),
        "1e999",
        "🦊",
        [None],
        {"name": "tiger"},
        "/etc/passwd",
    ),
]
NAMES = [
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "../..",
        "../../x",
        "a/b",
        "a\\b",
        "C:\\x",
        "~",
        "a\0b",
        "\n",
        "con",
        "NUL.txt",
        "--help",
    ),
    *(
        "$(id)",
        ";id",
        "a" * 300,
        "<b>",
        "%2e%2e%2f",
        "\u202egnp",
        "．．／",
        "x.",
        ".hidden",
        "*",
        "{}",
        "'",
        '"',
        "\ud83d",
    ),
    *("é" * 200, "..;/", "a\tb", "data:,", "file:///x", "\u2215etc", "-", "|id", "\\\\host\\share", "amber/../x"),
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with a random change: flipped, overwritten, inserted, removed, repeated or truncated ones."""
    data, at = bytearray(content), rng.randrange(len(content))
    if rng.random() < 0.5:  # the header decides about everything else
        at = rng.randrange(min(len(content), 4000))
    size = rng.choice([1, 1, 2, 8, 100, 5000])
    kind = rng.choice(["flip", "overwrite", "insert", "remove", "repeat", "truncate"])
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        data[at : at + size] = rng.randbytes(min(size, len(data) - at))
    elif kind == "insert":
        data[at:at] = rng.randbytes(size)
    elif kind == "remove":
        del data[at : at + size]
    elif kind == "repeat":
        data[at:at] = data[at : at + size]
    else:
        del data[at:]
    return bytes(data)


def mutated_header(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with another value, shape, dtype or name in its header."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = rng.choice(list(header))
    kind = rng.choice(["name", "dtype", "shape", "offsets", "value", "remove"])
    if kind == "name":
        header[rng.choice([*NAMES, name + "x", name[1:], name * 20])] = header.pop(name)
    elif kind == "remove":
        del header[name]
    elif kind == "value" or name == "__metadata__":
        header[name] = rng.choice(ODD_VALUES)
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(
            ["F64", "F16", "BF16", "I64", "U8", "C64", "F8_E4M3", "F4", "F6_E2M3", "BOOL", 1]
        )
    elif kind == "shape":
        header[name]["shape"] = rng.choice(
            [[], [1], [0], [-1], [2**62, 2**62], [1] * 80, "x", header[name]["shape"][::-1]]
        )
    else:
        header[name]["data_offsets"] = rng.choice([[0, 0], [0, 2**63], [-1, 4], [4, 0], [0], None])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Return a JSON object with another value of one key, or one more key."""
    values = json.loads(content)
    values[rng.choice([*values, "unknown"])] = rng.choice(ODD_VALUES)
    return json.dumps(values).encode()


def mutate(path: Path, rng: random.Random) -> None:
    """Change a file at random, by its kind half of the time."""
    kinds = {".safetensors": mutated_header, ".json": mutated_json}
    change = kinds.get(path.suffix, mutated) if rng.random() < 0.5 else mutated
    path.write_bytes(change(path.read_bytes(), rng))


class Counts:
    """Counts of results, and the slowest one."""

    def __init__(self, what: str) -> None:
        self.what, self.counts, self.slowest = what, Counter[str](), 0.0

    def add(self, action: Callable[[], object]) -> None:
        """Count the result of an action."""
        start = time.perf_counter()
        try:
            action()
            self.counts["accepted"] += 1
        except HRAError as error:
            self.counts["refused" if "\n" not in str(error) else "other"] += 1
        except Exception as error:
            self.counts["other"] += 1
            print(f"  {self.what}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        self.slowest = max(self.slowest, time.perf_counter() - start)

    def __str__(self) -> str:
        """Return a row of a Markdown table."""
        tried = sum(self.counts.values())
        numbers = " | ".join(f"{self.counts[name]:,}" for name in ("accepted", "refused", "other"))
        return f"| {self.what} | {tried:,} | {numbers} | {self.slowest:.1f} s |"


def mutated_files(folder: Path, count: int, rng: random.Random) -> Iterator[Counts]:
    """Read mutated adapters, LoRAs, archives, settings, metadata and images."""
    pipe = load_pipeline(str(BASE))
    lora = export_lora(ADAPTER, folder / "lora.safetensors", base=pipe)
    modules = [(name, module) for name, model in models(pipe).items() for module in adaptable_modules(model)]

    def load(source: Path) -> None:
        read_entry(source, built_in=False)
        load_hra_weights(pipe, source, "trial")
        unload_hra_weights(pipe, "trial")

    adapters = Counts("mutated adapters, loaded into the embedded base")
    parts = sorted(
        path.relative_to(ADAPTER) for path in ADAPTER.glob("*/*") if path.suffix in (".json", ".safetensors")
    )
    for _ in range(count):
        shutil.rmtree(folder / "it", ignore_errors=True)
        shutil.copytree(ADAPTER, folder / "it")
        mutate(folder / "it" / rng.choice(parts), rng)
        adapters.add(lambda: load(folder / "it"))
    yield adapters
    loras = Counts("mutated LoRAs, read for the embedded base")
    content = Path(lora).read_bytes()
    for _ in range(count):
        Path(lora).write_bytes(content)
        mutate(Path(lora), rng)
        loras.add(lambda: read_lora(Path(lora), modules))
    yield loras
    yield from _other_files(folder, count, rng)


def _other_files(folder: Path, count: int, rng: random.Random) -> Iterator[Counts]:
    settings = (ADAPTER / "config.toml").read_bytes()
    image, info = Image.new("RGB", (16, 16)), PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: DDIM, Seed: 1, Size: 64x64", zip=True)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as opened:
        for path in ADAPTER.glob("*/*"):
            opened.write(path, path.relative_to(ADAPTER))

    def unpack(path: Path) -> None:
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        (folder / "unpacked").mkdir()
        _unpack(path, folder / "unpacked")

    kinds: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
        "mutated settings of a run": ("config.toml", settings, lambda path: run_settings(path.parent)),
        "mutated PNGs with settings": ("a.png", file.getvalue(), read_request),
        "mutated uploads": ("b.png", file.getvalue(), read_upload),
        "mutated archives": ("a.zip", archive.getvalue(), unpack),
    }
    for what, (name, content, read) in kinds.items():
        counts = Counts(what)
        for _ in range(count):
            (folder / name).write_bytes(mutated(content, rng))
            counts.add(lambda: read(folder / name))  # noqa: B023 (called at once)
        yield counts


def hostile_names(folder: Path) -> Iterator[Counts]:
    """Use hostile names for everything of the studio that takes a name; nothing outside of its folder may change."""
    session = Session(StudioConfig(folder=folder / "inside" / "studio"))
    session.library.add(ADAPTER, "mine")
    before = {path for path in folder.rglob("*") if session.folder not in (path, *path.parents)}
    counts = Counts("hostile names: rename, delete, look up an adapter; look up, stop, resume, delete a job")
    actions = [
        lambda name: session.library.rename("mine", name),
        session.library.delete,
        session.library.entry,
        session.jobs.get,
        session.jobs.stop,
        session.jobs.resume,
        session.jobs.delete,
    ]
    for name in NAMES:
        for action in actions:
            counts.add(lambda: action(name))  # noqa: B023 (called at once)
            if not (session.library.folder / "mine").exists():  # the name is a valid one
                shutil.rmtree(session.library.folder)
                session.library.add(ADAPTER, "mine")
    after = {path for path in folder.rglob("*") if session.folder not in (path, *path.parents)}
    counts.counts["other"] += len(before ^ after)
    session.worker.close()
    yield counts


def random_calls(folder: Path, calls: int, rng: random.Random) -> Iterator[Counts]:
    """Call every endpoint of a studio, half of the values random; it has to answer in the end."""
    from hra_diffusion.studio.page import build_page, launch_options

    session = Session(StudioConfig(folder=folder / "studio"))
    session.train = session.estimate = lambda _: (_ for _ in ()).throw(HRAError("no process in a benchmark"))
    page = build_page(session)
    _, address, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
    endpoints = [function for function in page.fns.values() if function.api_visibility == "public"]
    counts = Counts(f"random calls of {len(endpoints)} endpoints")
    with httpx.Client(base_url=f"{address}gradio_api", timeout=300) as client:
        for endpoint in endpoints:
            for _ in range(calls):
                usual = [getattr(component, "value", None) for component in endpoint.inputs]
                values = [value if rng.random() < 0.5 else rng.choice(ODD_VALUES) for value in usual]
                _call(client, str(endpoint.api_name), values, counts)
        _call(client, "adapters", [], alive := Counts("alive"))
    page.close()
    session.worker.close()
    if not alive.counts["accepted"]:
        raise SystemExit("The studio does not answer any more.")
    yield counts


def _call(client: httpx.Client, name: str, values: list[Any], counts: Counts) -> None:
    start = time.perf_counter()
    body = json.dumps({"data": values}).encode()
    response = client.post(f"/call/{name}", content=body, headers={"Content-Type": "application/json"})
    if response.status_code == 200:
        text = client.get(f"/call/{name}/{response.json()['event_id']}").text
        result = "accepted" if "event: complete" in text else "refused"
        if "Unexpected error" in text or not re.search(r"event: (complete|error)", text):
            result = "other"
    else:
        result, text = "refused" if response.status_code < 500 else "other", response.text
    if result == "other":
        print(f"  /{name}: {response.status_code} {text[:200]} for {str(values)[:200]}", file=sys.stderr)
    counts.counts[result] += 1
    counts.slowest = max(counts.slowest, time.perf_counter() - start)


class FailingDisk:
    """A disk below a folder that fails from a given write on; an audit hook, since Python cannot remove one."""

    _EVENTS = ("open", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate")

    def __init__(self, folder: Path) -> None:
        self.folder, self.left, self.error = str(folder), None, 0
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None or event not in self._EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not re.search("[wax+]", str(arguments[1] or "")) and not (arguments[2] or 0) & 3:
            return
        self.left -= 1
        if self.left < 0 and self.error == _KILL:
            os._exit(9)
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error), arguments[0])

    @contextlib.contextmanager
    def failing_after(self, writes: int, error: int) -> Iterator[None]:
        """Fail after a number of writes within a ``with`` block."""
        self.left, self.error = writes, error
        try:
            yield
        finally:
            self.left = None


_KILL = -1
_FAILURES = {
    "a full disk": errno.ENOSPC,
    "a read-only disk": errno.EROFS,
    "no free handle": errno.EMFILE,
    "a kill": _KILL,
}


def failing_disks(folder: Path) -> Iterator[Counts]:
    """Fail at every write of a merge, of exports, of an import and of a saved image, one after the other."""
    disk, pipe, output = FailingDisk(folder), load_pipeline(str(BASE)), folder / "output"
    session = Session(StudioConfig(folder=folder / "studio"))
    Image.new("RGB", (8, 8)).save(folder / "a.png")

    def export(layout: Any, name: str) -> None:
        export_lora(ADAPTER, output / name, base=pipe, layout=layout)

    actions: dict[str, tuple[Path, Callable[[], object]]] = {
        "a merge": (output, lambda: merge_hra({str(ADAPTER): 1.0}, output / "model", base=BASE)),
        "an export as a LoRA": (output, lambda: export("kohya", "it.safetensors")),
        "an export as PEFT's folders": (output, lambda: export("peft", "it")),
        "an adapter added to the library": (session.library.folder, lambda: session.library.add(ADAPTER, "new")),
        "an upload saved": (session.uploads.folder, lambda: session.uploads.save(Image.open(folder / "a.png"))),
    }
    for failure, error in _FAILURES.items():
        for what, (place, action) in actions.items():
            if what == "an export as PEFT's folders" and failure == "a kill":
                continue  # several files in several folders: not atomic
            counts = Counts(f"{failure} at every write of {what}")
            for writes in range(1000):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                (place / "earlier").write_text("content")
                with disk.failing_after(writes, error):
                    counts.add(action if error != _KILL else lambda: _in_child(action))  # noqa: B023
                if counts.counts["accepted"]:
                    break
                tidy(place)
                left = [path for path in place.rglob("*") if path.is_file()]
                counts.counts["other"] += left != [place / "earlier"]
            yield counts
    session.worker.close()


def _in_child(action: Callable[[], object]) -> None:
    """Run an action in a forked process, which the disk may kill."""
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise HRAError("killed")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=["files", "names", "calls", "disks"])
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"{describe_machine()}\n\n| what | tried | accepted | refused | other | slowest |\n|---|---|---|---|---|---|")
    parts: dict[str, Callable[[Path], Iterator[Counts]]] = {
        "files": lambda folder: mutated_files(folder, options.mutations, rng),
        "names": hostile_names,
        "calls": lambda folder: random_calls(folder, options.calls, rng),
        "disks": failing_disks,
    }
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            for counts in parts[part](Path(folder)):
                print(counts, flush=True)


if __name__ == "__main__":
    main()
