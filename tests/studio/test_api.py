"""The studio's API: many clients at once, stopping, unusual prompts, hostile input, import and export."""

import io
import json
import re
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from hra_diffusion.errors import BusyError, HRAError
from hra_diffusion.studio.engine.exporting import import_adapter
from hra_diffusion.studio.engine.generation.events import Generated
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.metadata import read_request
from hra_diffusion.studio.tabs.generation_status import truncation_warnings
from hra_diffusion.studio.tabs.settings import SETTINGS

pytestmark = pytest.mark.slow

CLIENTS, REQUESTS, STOPS = 8, 25, 30
PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("amber", "birch", "cedar", "dune")


def numbered_request(number: int) -> GenerateRequest:
    """Return one of many requests: two of the four adapters, with strengths that depend on the number."""
    first, second = NAMES[number % 4], NAMES[(number // 4 + 1 + number) % 4]
    uses = [AdapterUse(name=first, strength=0.5 + number % 3 / 2)]
    if second != first:
        uses.append(AdapterUse(name=second, strength=0.75))
    return GenerateRequest(
        prompt="a photo of a cat",
        adapters=tuple(uses),
        steps=1,
        width=32,
        height=32,
        guidance_scale=1,
        seed=number,
    )


def settings_values(request: GenerateRequest) -> list:
    """Return the settings of a request in the order of the page."""
    values = vars(request) | {"adapters": request.to_json()["adapters"], "new_seed": False, "annotator": "own"}
    values |= {"image": None, "mask_image": None, "control_image": None, "outpaint": 0, "outpaint_sides": []}
    return [values[name] for name in SETTINGS]


def pixels(path: Path) -> bytes:
    with Image.open(path) as opened:
        return opened.tobytes()


def generate_image(session, request: GenerateRequest) -> Image.Image:
    """Generate the only image of a request, without a page."""
    events = session.worker.stream(request, threading.Event())
    (image,) = (event.image for event in events if isinstance(event, Generated))
    return image


def wait_for_worker(session, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while session.worker.pending and time.monotonic() < end:
        time.sleep(0.02)
    assert not session.worker.pending


def test_clip_skip_of_a_request_is_the_pipelines(session, tiny_sd):
    from hra_diffusion import pipelines

    request = replace(numbered_request(0), adapters=(), clip_skip=1)
    expected = pipelines.generate_image(
        pipelines.load_pipeline(str(tiny_sd)),
        request.prompt,
        0,
        clip_skip=1,
        num_inference_steps=1,
        height=32,
        width=32,
        guidance_scale=1.0,
    )
    assert generate_image(session, request).tobytes() == expected.tobytes()
    plain = generate_image(session, replace(request, clip_skip=None))
    assert plain.tobytes() != expected.tobytes()


def test_images_of_many_clients_equal_serial_images(session, address):
    different = 24
    serial = {number: generate_image(session, numbered_request(number)).tobytes() for number in range(different)}
    process = psutil.Process()
    memory = []

    def send_requests(client_number: int) -> list[tuple[int, bytes]]:
        images = []
        for index in range(REQUESTS):
            number = (client_number * REQUESTS + index) % different
            values = settings_values(numbered_request(number))
            response = call_endpoint(address, "generate", values, session=f"client-{client_number}")
            gallery = json.loads(response.split("event: complete\ndata: ")[1].splitlines()[0])[0]
            file = io.BytesIO(urllib.request.urlopen(gallery[0]["image"]["url"], timeout=60).read())
            images.append((number, Image.open(file).tobytes()))
            memory.append(process.memory_info().rss)
        return images

    with ThreadPoolExecutor(CLIENTS) as clients:
        images = [image for batch in clients.map(send_requests, range(CLIENTS)) for image in batch]
    assert len(images) == CLIENTS * REQUESTS
    assert [number for number, image in images if image != serial[number]] == []
    settled = memory[len(memory) // 3]
    assert memory[-1] < settled * 1.05, [f"{size / 1e6:.0f} MB" for size in memory]


def test_truncation_checks_of_other_clients_do_not_change_an_image(session):
    def image() -> bytes:
        return generate_image(session, numbered_request(0)).tobytes()

    expected, done = image(), threading.Event()

    def check_prompts() -> int:
        checks = 0
        while not done.is_set():
            assert session.worker.generator.truncated_text("a cat " * 20)
            checks += 1
        return checks

    with ThreadPoolExecutor(2) as clients:
        checks = [clients.submit(check_prompts) for _ in range(2)]
        try:
            assert [image() == expected for _ in range(40)] == [True] * 40
        finally:
            done.set()
        assert all(check.result() for check in checks)


def test_too_many_requests_are_refused_with_a_message(session, address):
    stops = [threading.Event() for _ in range(session.config.max_waiting + 1)]
    slow = GenerateRequest(prompt="a cat", steps=150, count=16, width=32, height=32)
    streams = [session.worker.stream(slow, stop) for stop in stops]
    try:
        for stream in streams:
            next(stream)
        with pytest.raises(BusyError, match="Try again"):
            next(session.worker.stream(slow, threading.Event()))
        assert "requests wait already" in call_endpoint(address, "generate", settings_values(numbered_request(0)))
    finally:
        for stop in stops:
            stop.set()
        for stream in streams:
            stream.close()
    wait_for_worker(session)


@contextmanager
def generating_tab(address: str, fn_index: int, request: GenerateRequest) -> Iterator[dict]:
    """Generate as a browser's tab does: with a heartbeat, and with the events up to the first step read."""
    tab = {"session_hash": secrets.token_hex(6)}
    with httpx.Client(base_url=f"{address}gradio_api", timeout=60) as browser, ExitStack() as connections:
        connections.enter_context(browser.stream("GET", f"/heartbeat/{tab['session_hash']}"))
        browser.post(
            "/queue/join", json=tab | {"fn_index": fn_index, "data": settings_values(request)}
        ).raise_for_status()
        events = connections.enter_context(browser.stream("GET", "/queue/data", params=tab))
        next(line for line in events.iter_lines() if "step 1 of" in line)
        yield tab


def test_after_a_stop_or_a_closed_tab_the_worker_has_no_request_and_the_next_image_is_right(session, address, client):
    ids = {endpoint["api_name"].removeprefix("page_"): endpoint["id"] for endpoint in client.config["dependencies"]}
    slow = GenerateRequest(
        prompt="a dog", adapters=(AdapterUse(name="birch"),), steps=150, count=16, width=32, height=32
    )

    def next_image() -> bytes:
        return generate_image(session, numbered_request(0)).tobytes()

    expected, images = next_image(), set(session.images.rglob("*.png"))
    for number in range(STOPS):
        with generating_tab(address, ids["_generate_images"], slow) as tab:
            assert session.worker.pending == 1
            if number % 2:
                stop = tab | {"fn_index": ids["stop"], "data": []}
                httpx.post(f"{address}gradio_api/run/predict", json=stop).raise_for_status()
                wait_for_worker(session, 10)
        wait_for_worker(session, 10)
        assert next_image() == expected
    assert len(set(session.images.rglob("*.png")) - images) < STOPS * slow.count


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a" * 100_000,
        "\U0001f600" * 200,
        "قطة على الشاطئ",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "a\0b\ud800",
    ],
    ids=["empty", "long", "emoji", "right-to-left", "html", "nul and surrogate"],
)
@pytest.mark.parametrize("syntax", ["a1111", "plain"])
def test_unusual_prompts_give_images_and_their_truncated_ends_are_escaped(client, session, syntax, prompt):
    request = {"prompt": prompt, "steps": 1, "seed": 1, "new_seed": False, "prompt_syntax": syntax}
    if "\ud800" in prompt:  # not valid in JSON: send the text of a client that drops it
        prompt = request["prompt"] = "a\0b"
    gallery, _, ends = client.predict(**request, api_name="/generate")
    assert read_request(Path(gallery[0]["image"])).prompt == prompt.replace("\0", "")
    end = session.worker.generator.truncated_text(prompt, syntax)
    assert ends == ({"prompt": end} if end else {})
    warnings = truncation_warnings(ends)
    assert ("its end is ignored" in warnings) == bool(end)
    assert "<script" not in warnings and "<img" not in warnings


def test_the_truncated_end_of_a_prompt_consists_of_words(session):
    truncated = session.worker.generator.truncated_text("cat " * 40)
    assert {"cat"} <= set(truncated.split()) and not truncated.endswith(" ") and "<" not in truncated


def test_a_start_image_changes_the_image(client, subject):
    request = {"prompt": "a cat", "steps": 2, "seed": 1, "new_seed": False, "image_strength": 0.5}
    plain = client.predict(**request, api_name="/generate")[0][0]["image"]
    started = client.predict(**request, image=handle_file(str(subject[0])), api_name="/generate")[0][0]["image"]
    assert pixels(Path(plain)) != pixels(Path(started))
    assert len(read_request(Path(started)).image or "") == 32


HOSTILE_NAMES = [
    *("", " ", ".", "..", "/", "/etc", "../..", "../../etc/passwd", "..\\..\\x", "a/b", "a\\b", "C:\\x", "~", "~root"),
    *("a\0b", "\n", "con", "NUL", "AUX.txt", "-", "--help", "$(id)", "`id`", ";id", "|id", "a" * 300, "<b>x</b>"),
    *("%2e%2e%2f", "..%2f", "\u202egnp", "\u2215etc", "．．／", "file:///etc/passwd", "http://127.0.0.1/", "x."),
    *("data:text/plain,x", "\\\\host\\share", ".hidden", "amber/", "amber/../birch", "./amber", "*", "?", "{}", "[]"),
    *("'", '"', "a\tb", "\ud83d", "..;/", "....//"),
]


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def call_endpoint(address: str, endpoint: str, data: list, session: str | None = None) -> str:
    """Call an endpoint without the checks of gradio's client; return the raw response.

    Gradio keeps the state of every session, and a call without one begins one: page.SESSIONS.
    """
    body = json.dumps({"data": data, "session_hash": session}).encode()
    kind = {"Content-Type": "application/json"}
    try:
        call = urllib.request.Request(f"{address}gradio_api/call/{endpoint}", body, kind)
        event = json.load(urllib.request.urlopen(call, timeout=60))["event_id"]
        return urllib.request.urlopen(f"{address}gradio_api/call/{endpoint}/{event}", timeout=120).read().decode()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        return f"HTTP {error.code}"


HOSTILE_FILES = [
    *("/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "/proc/self/environ", "~/.ssh/id_rsa", ".", "/"),
    *("data:image/png;base64,AAAA", "data:text/html,<script>", "data:application/zip;base64,UEsFBg==", "data:,"),
    *("C:\\Windows\\win.ini", "\\\\host\\share\\a.png", "/dev/zero", "/dev/stdin", "a\0b", "", "x" * 5000),
]
FILE_ENDPOINTS = {
    "restore": lambda file: [file],
    "check": lambda file: [[file], {"headers": [], "data": []}],
    "import_adapter": lambda file: [[file], "x", ""],
    "annotate": lambda file: [[{"name": "edges"}], file, "own", 32, 32],
}


def file_data(path: str) -> dict:
    return {"path": path, "url": path, "orig_name": path, "meta": {"_type": "gradio.FileData"}}


def hostile_calls() -> Iterator[tuple[str, list]]:
    for name in HOSTILE_NAMES:
        yield "rename", ["amber", name]
        yield "export_lora", [name, "kohya", 1, "fp16"]
        yield "rename_job", ["amber", name]
        for endpoint in ("delete", "adapter", "job", "stop_job", "resume_job", "delete_job"):
            yield endpoint, [name]
    for path in HOSTILE_FILES:
        for endpoint, data in FILE_ENDPOINTS.items():
            yield endpoint, data(file_data(path))


def call_private(address: str, fn_index: int, data: list) -> str:
    """Call a private function of the page, with values of the caller's choice; return its events."""
    tab = {"session_hash": secrets.token_hex(6)}
    with httpx.Client(base_url=f"{address}gradio_api", timeout=60) as browser:
        joined = browser.post("/queue/join", json=tab | {"fn_index": fn_index, "data": data})
        assert joined.status_code < 500
        with browser.stream("GET", "/queue/data", params=tab) as events:
            response = ""
            for line in events.iter_lines():
                response += line
                if "process_completed" in line or "close_stream" in line:
                    return response
    return response


def test_hostile_names_and_paths_reach_no_file_outside_the_folder(session, address, client, accessed):
    outside = session.folder.parent
    (outside / "secret.txt").write_text("a secret")
    before, names = files_below(outside), [entry.name for entry in session.library.entries()]
    functions = client.config["dependencies"]
    private = [function for function in functions if function["api_visibility"] == "private" and function["queue"]]
    calls = list(hostile_calls())
    assert len(calls) >= 400
    call_endpoint(address, "restore", [file_data("/etc/passwd")])  # imports that happen at the first call
    accessed()
    for endpoint, data in calls:
        response = call_endpoint(address, endpoint, data)
        assert "secret" not in response and "root:" not in response
    for function in private:
        for value in ("../../secret.txt", file_data(str(outside / "secret.txt")), [[str(outside / "secret.txt"), ""]]):
            response = call_private(address, function["id"], [value] * len(function["inputs"]))
            assert "a secret" not in response, function
    paths, hosts = accessed()
    assert any(path.is_relative_to(session.folder) for path in paths)  # the audit hook works
    project = (
        session.folder,
        PROJECT / "hra_diffusion",
        PROJECT / "assets",
        PROJECT / "tests",
        PROJECT / ".pytest_cache",
    )
    system = (Path(sys.prefix), Path(sys.base_prefix), Path("/dev"), Path("/proc/self"), Path("/proc/meminfo"))
    others = {path for path in paths if not any(path.is_relative_to(folder) for folder in (*project, *system))}
    unexpected = {path for path in others if not re.fullmatch(r"/proc/\d+/stat", str(path))}  # is a job running?
    assert unexpected == set()
    assert hosts == set()
    assert [entry.name for entry in session.library.entries()] == names
    changed = {path for path, time_ in files_below(outside).items() if before.get(path) != time_}
    assert {path for path in changed if session.cache not in path.parents} == set()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "data:image/png;base64,AAAA"]
)
def test_files_without_an_upload_are_not_read(session, address, path):
    for endpoint in ("restore", "check", "import_adapter"):
        response = call_endpoint(address, endpoint, FILE_ENDPOINTS[endpoint](file_data(path)))
        refused = "error" in response or response.startswith("HTTP 4") or "no image" in response
        assert refused and "root:" not in response
    for route in ("file=", "file/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                f"{address}gradio_api/{route}{session.library.folder}/amber/unet/adapter_config.json"
            )
        assert refused.value.code in (403, 404)


def bomb(side: int) -> bytes:
    """Return a small PNG file that decodes to side² pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_images_with_too_many_pixels_or_bytes_are_refused(client, tmp_path, session):
    (tmp_path / "bomb.png").write_bytes(bomb(8000))
    (tmp_path / "heavy.png").write_bytes(bomb(64) + b"\0" * 31_000_000)
    for name, message in {"bomb.png": "pixels", "heavy.png": "MB"}.items():
        with pytest.raises(AppError, match=message):
            client.predict(prompt="a", steps=1, image=handle_file(str(tmp_path / name)), api_name="/generate")
        (row,) = client.predict([handle_file(str(tmp_path / name))], api_name="/check")
        assert (row["name"], row["size"]) == (name, None) and message in row["problem"]


def giant(side: int) -> bytes:
    """Return a PNG file whose header claims side² pixels."""
    small = bomb(8)
    header = small[12:16] + side.to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "abc"}, "steps must be a whole number; found 'abc'"),
        ({"seed": 1.5, "new_seed": False}, "seed must be a whole number; found '1.5'"),
        ({"prompt": ["a"]}, "prompt must be a text"),
        ({"scheduler": "Restart"}, "no scheduler 'Restart'"),
        ({"combine": "sum"}, "combine is 'sum'"),
        ({"image": b"no image"}, "it.png is no image"),
        ({"image": giant(30_000)}, r"it\.png .*pixels"),
        ({"control_image": b"no image", "adapters": ["edges"]}, "it.png is no image"),
        ({"control_image": giant(30_000), "adapters": ["edges"]}, r"it\.png .*pixels"),
        ({"control_image": bomb(64), "adapters": ["amber"]}, "choose a control"),
        ({"control_image": bomb(64), "adapters": ["edges"], "annotator": ["own"]}, "no annotator"),
    ],
)
def test_invalid_settings_are_refused_with_a_message(client, address, tmp_path, changes, message):
    values = dict(zip(SETTINGS, settings_values(numbered_request(0)), strict=True)) | changes
    for name in ("image", "control_image"):
        if values[name]:
            (tmp_path / "it.png").write_bytes(values[name])
            uploaded = httpx.post(
                f"{address}gradio_api/upload", files={"files": (tmp_path / "it.png").open("rb")}
            ).json()
            values[name] = file_data(uploaded[0]) | {"orig_name": "it.png"}
    response = call_endpoint(address, "generate", list(values.values()))
    assert re.search(message, json.loads(response.split("event: error\ndata: ")[1].splitlines()[0])["error"])


def test_unreadable_parameters_are_refused_with_a_message(address, subject):
    for endpoint, data in {
        "train": [[], None, *[""] * 10],
        "annotate": [[], {"path": None, "url": "/etc/passwd"}],
    }.items():
        assert f"/{endpoint} cannot read" in call_endpoint(address, endpoint, data)
    for endpoint, data in {"import_adapter": [[], None, ""], "rename": ["amber", None]}.items():
        assert "is no name" in call_endpoint(address, endpoint, data)
    assert "choose a PNG file" in call_endpoint(address, "restore", [None])


def test_captions_and_crops_stay_with_their_images(client, session, tmp_path):
    from hra_diffusion.studio.tabs.training_fields import job_from_values

    files = []
    for name in ("one/a.png", "other/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bomb(40 + len(files)))
        files.append(tmp_path / name)
    rows = [["a.png", "asleep", "middle"], ["a.png", "at play", "start"]]
    table = {"headers": ["image", "caption", "crop"], "data": rows}
    uploaded = [handle_file(str(file)) for file in files]
    checked = client.predict(uploaded, table, api_name="/check")
    assert [[row["name"], row["caption"], row["crop"]] for row in checked] == [*rows, ["b.png", "", "whole"]]
    (last,) = client.predict(uploaded[2:], api_name="/check")
    assert last == {"name": "b.png", "size": [42, 42], "problem": "", "caption": "", "crop": "whole"}
    words = ["a name", "cat", "sks", "a photo of", "Usual", *[""] * 5]
    images = job_from_values([[str(file) for file in files], rows, *words]).images
    assert [(image.caption, image.crop) for image in images] == [
        ("asleep", "middle"),
        ("at play", "start"),
        ("", "whole"),
    ]


def test_too_many_training_images_are_refused(subject):
    from hra_diffusion.studio.engine.training.training_images import check_images

    with pytest.raises(HRAError, match=r"at most 200 images.* found 201"):
        check_images(subject[:1] * 201)


def test_messages_name_files_without_their_folders(client, session, tmp_path):
    from hra_diffusion.studio.tabs.common import strip_folders

    (tmp_path / "a.zip").write_bytes(archive({"unet/adapter_config.json": b"{", "unet/adapter_model.safetensors": b""}))
    with pytest.raises(AppError) as refused:
        client.predict([handle_file(str(tmp_path / "a.zip"))], "new one", api_name="/import_adapter")
    assert str(refused.value).startswith("new one/unet/adapter_config.json is no JSON")
    assert strip_folders("Cannot read '/a/b c/d.json'; see https://x.y/z, a/b") == (
        "Cannot read 'b c/d.json'; see https://x.y/z, a/b"
    )


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"no zip",
        archive({"readme.txt": b"nothing"}),
        archive({"../../../adapter_config.json": b"{}", "/adapter_model.safetensors": b"x"}),
        archive({"unet/adapter_config.json": b"{", "unet/adapter_model.safetensors": b""}),
        archive({"unet/adapter_config.json": b"{}", "unet/adapter_model.bin": b"pickle"}),
        archive({"a/unet/adapter_config.json": b"{}", "b/unet/adapter_config.json": b"{}"}),
        archive({"unet/adapter_model.safetensors": b"\0" * 501_000_000}),
    ],
    ids=["no zip", "no adapter", "outside", "damaged", "pickle", "two", "bomb"],
)
def test_archives_without_a_valid_adapter_leave_no_files(client, session, tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    before = set(session.folder.parent.rglob("*"))
    with pytest.raises(AppError):
        client.predict([handle_file(str(tmp_path / "a.zip"))], "new one", api_name="/import_adapter")
    new = {
        path for path in set(session.folder.parent.rglob("*")) - before if session.cache not in [path, *path.parents]
    }
    assert new == set()


def adapter_files(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """Return an adapter's two files as members of an archive."""
    return {f"{prefix}{path.name}": path.read_bytes() for path in folder.iterdir()}


def import_members(session, folder: Path, members: dict[str, bytes], *, packed: bool = True):
    """Import an archive of these members, or the members themselves; return the library's entry."""
    paths = [folder / "it.zip"] if packed else [folder / name for name in members]
    for path in paths:
        path.write_bytes(archive(members) if packed else members[path.name])
    return import_adapter(session.worker, session.library, paths, "newcomer")[0]


@pytest.mark.parametrize(("prefix", "packed"), [("", False), ("", True), ("amber/", True)])
def test_files_from_peft_are_imported_for_the_component_they_fit(session, adapter_folders, tmp_path, prefix, packed):
    members = adapter_files(adapter_folders["amber"] / "unet", prefix)
    try:
        entry = import_members(session, tmp_path, members, packed=packed)
        assert entry.components == ("unet",)
        request = GenerateRequest(adapters=(AdapterUse(name="newcomer"),), steps=1, width=32, height=32)
        generate_image(session, request)
    finally:
        session.library.delete("newcomer")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", r"(\w+\.?)+!"),
        ("exclude_modules", [r"(\w+\.?)+!"]),
        ("layers_pattern", [r"(\w+\.?)+!"]),
        ("modules_to_save", [r"(\w+\.?)+!"]),
    ],
)
def test_patterns_in_imported_files_are_refused(session, adapter_folders, tmp_path, field, value):
    members = adapter_files(adapter_folders["amber"] / "unet")
    settings = json.loads(members["adapter_config.json"]) | {field: value}
    members["adapter_config.json"] = json.dumps(settings).encode()
    with pytest.raises(HRAError, match=f"has {field} .* may be a pattern"):
        import_members(session, tmp_path, members)


def test_an_adapter_is_imported_with_its_settings_and_thumbnail(session, adapter_folders, tmp_path):
    members = adapter_files(adapter_folders["amber"] / "unet", "amber/unet/")
    members["amber/config.toml"] = b'[data]\ninstance_prompt = "a photo of a sks cat"\n'
    members["amber/thumbnail.png"] = bomb(2000)
    try:
        entry = import_members(session, tmp_path, members)
        assert entry.trigger == "a photo of a sks cat"
        with Image.open(entry.thumbnail) as image:
            assert max(image.size) <= 640
    finally:
        session.library.delete("newcomer")
    for name, content in {"thumbnail.png": b"no image", "config.toml": b"a = " + b"[" * 9999}.items():
        with pytest.raises(HRAError):
            import_members(session, tmp_path, members | {f"amber/{name}": content})
    assert "newcomer" not in [entry.name for entry in session.library.entries()]


def test_an_exported_lora_is_imported_as_the_same_adapter(client, session):
    entries = session.library.entries()
    exported = client.predict("amber", "kohya", 1.0, "fp32", api_name="/export_lora")
    client.predict([handle_file(exported)], "amber again", api_name="/import_adapter")
    shared = {"prompt": "a cat", "steps": 2, "width": 32, "height": 32}
    before, after = (
        generate_image(session, GenerateRequest(**shared, adapters=(AdapterUse(name=name),))).tobytes()
        for name in ("amber", "amber again")
    )
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= 2
    client.predict("amber again", "birch 2", api_name="/rename")
    client.predict("birch 2", api_name="/delete")
    assert session.library.entries() == entries


def test_a_merged_model_generates_the_image_of_its_adapters(client, session, tmp_path):
    import torch

    from hra_diffusion import pipelines

    uses = [AdapterUse(name="amber", strength=0.5), AdapterUse(name="birch", strength=1.25)]
    others = [{"name": "birch", "strength": 1.25}]
    file = client.predict("amber", 0.5, "fp32", True, others, "mean", api_name="/export_model")
    with zipfile.ZipFile(file) as opened:
        opened.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if (path / "model_index.json").is_file())
    request = GenerateRequest(prompt="a cat", adapters=tuple(uses), steps=2, width=32, height=32, guidance_scale=1)
    active = generate_image(session, request)
    merged = pipelines.generate_image(
        pipelines.load_pipeline(str(folder)), "a cat", 0, height=32, width=32, num_inference_steps=2, guidance_scale=1.0
    )
    one, other = (torch.tensor(list(image.tobytes())).float() for image in (active, merged))
    assert (one - other).abs().max() <= 2
    plain = generate_image(session, request.without_adapters())
    assert plain.tobytes() != active.tobytes()


def test_every_action_is_a_named_endpoint(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    jobs = "train job jobs stop_job resume_job rename_job delete_job use_checkpoint job_log caption"
    wanted = f"generate before_after stop restore annotate grid check estimate {jobs}"
    library = "adapters adapter rename delete import_adapter export_lora export_model push"
    images = "images image star_image delete_image presets load_preset save_preset delete_preset"
    queue = "generate_list queue cancel"
    assert named.keys() == {f"/{name}" for name in f"{wanted} {library} {images} {queue}".split()}
    assert [parameter["parameter_name"] for parameter in named["/generate"]["parameters"]][:2] == [
        "prompt",
        "negative_prompt",
    ]


def test_publishing_needs_a_token_and_reports_the_hub_s_error(client):
    with pytest.raises(AppError, match="access token"):
        client.predict("amber", "somebody/amber", "mit", "", api_name="/push")
    with pytest.raises(AppError, match=r"somebody/amber|hub|offline"):
        client.predict("amber", "somebody/amber", "mit", "hf_wrong", api_name="/push")


def test_presets_include_time_and_memory_after_an_estimate(session):
    from hra_diffusion.studio.tabs.training_numbers import preset_choices

    report = {"time": "0.50 s a step, 0:01:40 in all, and 20 s before", "memory": "1.25 GB at most in two"}
    assert not any("GB" in label for label, _ in preset_choices(session))
    session.estimates.save(session.worker.base.source, report)
    try:
        assert {name: label for label, name in preset_choices(session)}["Usual"] == "Usual · 200 steps · 2 min, 1.2 GB"
    finally:
        session.estimates.file.unlink()


def test_a_client_can_stop_a_job_that_was_started_elsewhere(client, session, subject):
    from hra_diffusion.studio.engine.training.training_images import TrainingImage
    from hra_diffusion.studio.engine.training.training_job import Preset, TrainingJob

    effort = Preset(steps=2000, rank=2, class_images=0, validations=0)
    session.train(
        TrainingJob(name="a long one", images=(TrainingImage(file=subject[0]),), subject="cat", preset=effort)
    )
    try:
        client.predict("a long one", api_name="/stop_job")
        with pytest.raises(AppError, match="no training job named"):
            client.predict("another", api_name="/stop_job")
    finally:
        session.jobs.stop("a long one")
    end = time.monotonic() + 60
    while session.jobs.running() and time.monotonic() < end:
        time.sleep(0.1)
    assert client.predict("a long one", api_name="/job")["status"] == "stopped"
    assert session.jobs.get("a long one").resumable


def test_an_empty_number_takes_the_preset_s_and_other_texts_are_refused(subject):
    from hra_diffusion.studio.engine.training.training_job import PRESETS
    from hra_diffusion.studio.tabs.training_fields import job_from_values

    words = [[str(subject[0])], [], "a name", "cat", "sks", "a photo of", "Quick look"]
    assert job_from_values([*words, "", None, " ", "", ""]).preset == PRESETS["Quick look"]
    assert job_from_values([*words, "7", 6, "0", 5.0, ""]).preset.steps == 7
    with pytest.raises(HRAError, match="rank must be a whole number"):
        job_from_values([*words, "", "four", "", "", ""])


def test_errors_keep_their_class(session):
    request = GenerateRequest(adapters=(AdapterUse(name="nobody"),), width=32, height=32)
    with pytest.raises(HRAError):
        next(session.worker.stream(request, threading.Event()))
