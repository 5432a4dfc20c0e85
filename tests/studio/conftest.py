"""A studio on a tiny base, served on this machine, with adapters and, where available, a browser."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
NAMES = ("amber", "birch", "cedar", "dune")


_FILES = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink"}
_LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0", None)


@pytest.fixture(scope="session")
def accessed() -> Callable[[], tuple[set[Path], set[str]]]:
    """Return and clear the paths and remote hosts accessed by this process."""
    paths: set[Path] = set()
    hosts: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event in _FILES:
            touched = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            paths.update(Path(path) for path in touched if isinstance(path, str) and path.startswith("/"))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
            if isinstance(host, str) and host not in _LOCAL:
                hosts.add(host)

    def take() -> tuple[set[Path], set[str]]:
        result = set(paths), set(hosts)
        paths.clear()
        hosts.clear()
        return result

    sys.addaudithook(watch)  # permanent: Python cannot remove an audit hook
    return take


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory, tiny_sd) -> dict[str, Path]:
    """Four untrained adapters of the base with different random rotations."""
    import torch
    from diffusers import UNet2DConditionModel

    from hra_diffusion import HRAConfig, HRAModel

    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        unet = UNet2DConditionModel.from_pretrained(tiny_sd / "unet", use_safetensors=True)
        config = HRAConfig(
            r=2, target_modules=["to_q", "to_v"], init_weights=False, base_model_name_or_path=str(tiny_sd)
        )
        model = HRAModel(unet, config, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(folder / name / "unet")
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="session")
def session(tmp_path_factory, adapter_folders, control_folder, tiny_sd):
    """A studio with four adapters and a control."""
    from hra_diffusion.studio.engine.config import StudioConfig
    from hra_diffusion.studio.engine.session import Session

    studio = Session(StudioConfig(base=str(tiny_sd), folder=tmp_path_factory.mktemp("studio") / "it", max_waiting=8))
    for name, folder in adapter_folders.items():
        studio.library.add(folder, name)
    studio.library.add(control_folder, "edges")
    yield studio
    studio.worker.close()


@pytest.fixture(autouse=True)
def _cache_of_gradio(monkeypatch):
    """Keep the process's cache folder of gradio, which every page sets, when a test builds a page of its own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))


@pytest.fixture(scope="session")
def address(session):
    """The address of the studio."""
    from hra_diffusion.studio.page import build_page, launch_options

    page = build_page(session)
    _, url, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture
def client(address, tmp_path):
    from gradio_client import Client

    return Client(address, verbose=False, download_files=str(tmp_path / "downloads"))


@pytest.fixture(scope="session")
def browser_type_launch_args():
    """Debian's chromium for pytest-playwright."""
    return {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}


@pytest.fixture
def tab(request, address):
    """A page of the studio in a browser; records its requests and errors."""
    if CHROMIUM is None:
        pytest.skip("There is no chromium here: apt-get install chromium.")
    page = request.getfixturevalue("page")
    page.requested_urls, page.errors = [], []
    page.on("request", lambda request: page.requested_urls.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#generate").wait_for()
    return page


def set_number(page, name: str, value: float) -> None:
    """Type a number into the field of a slider."""
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


@pytest.fixture(scope="session")
def subject() -> list[Path]:
    """Images of a subject."""
    return sorted((PROJECT / "assets" / "subjects" / "cat").glob("*.png"))
