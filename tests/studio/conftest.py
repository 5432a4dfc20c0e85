"""A studio on a tiny base that is served on this machine, adapters for it, and a browser where there is one."""

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
def touched() -> Callable[[], tuple[set[Path], set[str]]]:
    """Returns, and forgets, what this process has touched: paths of files, and hosts that are not this machine."""
    paths: set[Path] = set()
    hosts: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event in _FILES:
            found = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            paths.update(Path(path) for path in found if isinstance(path, str) and path.startswith("/"))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
            if isinstance(host, str) and host not in _LOCAL:
                hosts.add(host)

    def taken() -> tuple[set[Path], set[str]]:
        found = set(paths), set(hosts)
        paths.clear()
        hosts.clear()
        return found

    sys.addaudithook(watch)  # for good: hooks cannot be taken away
    return taken


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory, tiny_sd) -> dict[str, Path]:
    """Four adapters of the base, untrained, each with random turns of its own."""
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
    """A studio with the four adapters and a control."""
    from hra_diffusion.studio.engine.config import StudioConfig
    from hra_diffusion.studio.engine.session import Session

    studio = Session(StudioConfig(base=str(tiny_sd), folder=tmp_path_factory.mktemp("studio") / "it", max_waiting=8))
    for name, folder in adapter_folders.items():
        studio.library.add(folder, name)
    studio.library.add(control_folder, "edges")
    yield studio
    studio.worker.close()


@pytest.fixture(scope="session")
def address(session):
    """Where the studio is served."""
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
    """A page of the studio in a browser; it keeps the addresses of all that it asked for, and what went wrong in it."""
    if CHROMIUM is None:
        pytest.skip("There is no chromium here: apt-get install chromium.")
    page = request.getfixturevalue("page")
    page.asked, page.wrong = [], []
    page.on("request", lambda sent: page.asked.append(sent.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#generate").wait_for()
    return page


@pytest.fixture(scope="session")
def subject() -> list[Path]:
    """Images of a subject."""
    return sorted((PROJECT / "assets" / "subjects" / "cat").glob("*.png"))
