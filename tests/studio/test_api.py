"""The studio through its API: many clients at once, stopping, hostile input, odd prompts."""

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
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from hra_diffusion.errors import BusyError, HRAError
from hra_diffusion.studio.engine.events import Drawn
from hra_diffusion.studio.engine.exporting import bring_in
from hra_diffusion.studio.engine.metadata import read_request
from hra_diffusion.studio.engine.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.tabs.common import SETTINGS

pytestmark = pytest.mark.slow

CLIENTS, REQUESTS, STOPS = 8, 25, 30
PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("amber", "birch", "cedar", "dune")


def wish(number: int) -> GenerateRequest:
    """One of many requests: two of the four adapters, at strengths of its own."""
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


def in_order(request: GenerateRequest) -> list:
    """The request as a page sends it."""
    values = request.to_json() | {"new_seed": False, "image": None, "control_image": None, "annotator": "own"}
    return [values[name] for name in SETTINGS]


def pixels(path: Path) -> bytes:
    with Image.open(path) as opened:
        return opened.tobytes()


def wait_until_idle(session, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while session.model.busy and time.monotonic() < end:
        time.sleep(0.02)
    assert not session.model.busy


def test_images_of_many_clients_are_the_serial_ones(session, address):
    different = 24
    serial = {}
    for number in range(different):
        (drawn,) = (each for each in session.model.draw(wish(number), threading.Event()) if isinstance(each, Drawn))
        serial[number] = drawn.image.tobytes()
    process = psutil.Process()
    memory = []

    def ask(client_number: int) -> list[tuple[int, bytes]]:
        found = []
        for index in range(REQUESTS):
            number = (client_number * REQUESTS + index) % different
            said = ask_raw(address, "generate", in_order(wish(number)))
            gallery = json.loads(said.split("event: complete\ndata: ")[1].splitlines()[0])[0]
            file = io.BytesIO(urllib.request.urlopen(gallery[0]["image"]["url"], timeout=60).read())
            found.append((number, Image.open(file).tobytes()))
            memory.append(process.memory_info().rss)
        return found

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [answer for found in clients.map(ask, range(CLIENTS)) for answer in found]
    assert len(answers) == CLIENTS * REQUESTS
    assert [number for number, answer in answers if answer != serial[number]] == []
    settled = memory[len(memory) // 3]
    assert memory[-1] < settled * 1.1, [f"{each / 1e6:.0f} MB" for each in memory]


def test_what_others_ask_of_a_prompt_does_not_change_what_is_drawn(session):
    def drawn() -> bytes:
        events = session.model.draw(wish(0), threading.Event())
        return next(each.image.tobytes() for each in events if isinstance(each, Drawn))

    expected, done = drawn(), threading.Event()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            assert session.model.painter.left_out("a cat " * 20)
            asked += 1
        return asked

    with ThreadPoolExecutor(2) as others:
        asking = [others.submit(ask) for _ in range(2)]
        try:
            assert [drawn() == expected for _ in range(40)] == [True] * 40
        finally:
            done.set()
        assert all(each.result() for each in asking)


def test_too_many_requests_are_refused_with_a_message(session, address):
    stops = [threading.Event() for _ in range(session.config.max_waiting + 1)]
    slow = GenerateRequest(prompt="a cat", steps=150, count=16, width=32, height=32)
    drawings = [session.model.draw(slow, stop) for stop in stops]
    try:
        for each in drawings:
            next(each)
        with pytest.raises(BusyError, match="Try again"):
            next(session.model.draw(slow, threading.Event()))
        assert "requests wait already" in ask_raw(address, "generate", in_order(wish(0)))
    finally:
        for stop in stops:
            stop.set()
        for each in drawings:
            each.close()
    wait_until_idle(session)


@contextmanager
def drawing_tab(address: str, fn_index: int, request: GenerateRequest) -> Iterator[dict]:
    """Do as a browser's tab does that draws: a session with a heartbeat, and its events up to the first step."""
    tab = {"session_hash": secrets.token_hex(6)}
    with httpx.Client(base_url=f"{address}gradio_api", timeout=60) as browser, ExitStack() as connections:
        connections.enter_context(browser.stream("GET", f"/heartbeat/{tab['session_hash']}"))
        browser.post("/queue/join", json=tab | {"fn_index": fn_index, "data": in_order(request)}).raise_for_status()
        events = connections.enter_context(browser.stream("GET", "/queue/data", params=tab))
        next(line for line in events.iter_lines() if "step 1 of" in line)
        yield tab


def test_after_a_stop_or_a_closed_tab_the_model_is_idle_and_the_next_image_right(session, address, client):
    ids = {each["api_name"]: each["id"] for each in client.config["dependencies"]}
    slow = GenerateRequest(
        prompt="a dog", adapters=(AdapterUse(name="birch"),), steps=150, count=16, width=32, height=32
    )

    def right() -> bytes:
        return next(
            each.image.tobytes() for each in session.model.draw(wish(0), threading.Event()) if isinstance(each, Drawn)
        )

    expected, images = right(), set(session.images.rglob("*.png"))
    for number in range(STOPS):
        with drawing_tab(address, ids["generate"], slow) as tab:
            assert session.model.busy == 1
            if number % 2:
                stopping = tab | {"fn_index": ids["stop"], "data": []}
                httpx.post(f"{address}gradio_api/run/predict", json=stopping).raise_for_status()
                wait_until_idle(session, 10)
        wait_until_idle(session, 10)
        assert right() == expected
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
def test_odd_prompts_are_drawn_and_what_is_not_read_is_shown_escaped(client, session, prompt):
    request = {"prompt": prompt, "steps": 1, "seed": 1, "new_seed": False}
    if "\ud800" in prompt:  # JSON cannot carry it: as a client that escapes would send it
        prompt = request["prompt"] = "a\0b"
    gallery, _, unread, *_ = client.predict(**request, api_name="/generate")
    assert read_request(Path(gallery[0]["image"])).prompt == prompt.replace("\0", "")
    assert ("does not read the end" in unread) == bool(session.model.painter.left_out(prompt))
    assert "<script" not in unread and "<img" not in unread


def test_the_unread_end_of_a_prompt_is_words(session):
    unread = session.model.painter.left_out("cat " * 40)
    assert {"cat"} <= set(unread.split()) and not unread.endswith(" ") and "<" not in unread


def test_a_image_to_start_from_decides_the_image(client, subject):
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


def ask_raw(address: str, endpoint: str, data: list) -> str:
    """Call an endpoint past the client's own checks; returns what came back."""
    body = json.dumps({"data": data}).encode()
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
    "examine": lambda file: [[file], {"headers": [], "data": []}],
    "import_adapter": lambda file: [[file], "x"],
    "annotate": lambda file: [[{"name": "edges"}], file, "own", 32, 32],
}


def file_data(path: str) -> dict:
    return {"path": path, "url": path, "orig_name": path, "meta": {"_type": "gradio.FileData"}}


def hostile_calls() -> Iterator[tuple[str, list]]:
    for name in HOSTILE_NAMES:
        yield "rename", ["amber", name]
        yield "export_lora", [name, "kohya", 1, "fp16"]
        for endpoint in ("delete", "adapter", "run", "stop_run", "resume_run"):
            yield endpoint, [name]
    for path in HOSTILE_FILES:
        for endpoint, data in FILE_ENDPOINTS.items():
            yield endpoint, data(file_data(path))


def ask_private(address: str, fn_index: int, data: list) -> str:
    """Call what is no endpoint, as a page does, with values of the caller's own."""
    tab = {"session_hash": secrets.token_hex(6)}
    with httpx.Client(base_url=f"{address}gradio_api", timeout=60) as browser:
        joined = browser.post("/queue/join", json=tab | {"fn_index": fn_index, "data": data})
        assert joined.status_code < 500
        with browser.stream("GET", "/queue/data", params=tab) as events:
            said = ""
            for line in events.iter_lines():
                said += line
                if "process_completed" in line or "close_stream" in line:
                    return said
    return said


def test_hostile_names_paths_and_payloads_reach_nothing_outside_the_folder(session, address, client, touched):
    outside = session.folder.parent
    (outside / "secret.txt").write_text("a secret")
    before, names = files_below(outside), [entry.name for entry in session.library.entries()]
    private = [each for each in client.config["dependencies"] if each["api_visibility"] == "private" and each["queue"]]
    calls = list(hostile_calls())
    assert len(calls) >= 400
    ask_raw(address, "restore", [file_data("/etc/passwd")])  # what is imported only now
    touched()
    for endpoint, data in calls:
        answer = ask_raw(address, endpoint, data)
        assert "secret" not in answer and "root:" not in answer
    for each in private:
        for value in ("../../secret.txt", file_data(str(outside / "secret.txt")), [[str(outside / "secret.txt"), ""]]):
            answer = ask_private(address, each["id"], [value] * len(each["inputs"]))
            assert "a secret" not in answer, each
    paths, hosts = touched()
    assert any(path.is_relative_to(session.folder) for path in paths)  # what is touched is seen
    ours = (session.folder, PROJECT / "hra_diffusion", PROJECT / "assets", PROJECT / "tests", PROJECT / ".pytest_cache")
    system = (Path(sys.prefix), Path(sys.base_prefix), Path("/dev"), Path("/proc/self"), Path("/proc/meminfo"))
    strange = {path for path in paths if not any(path.is_relative_to(each) for each in (*ours, *system))}
    assert strange == set()
    assert hosts == set()
    assert [entry.name for entry in session.library.entries()] == names
    changed = {path for path, time_ in files_below(outside).items() if before.get(path) != time_}
    assert {path for path in changed if session.cache not in path.parents} == set()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "data:image/png;base64,AAAA"]
)
def test_files_that_nobody_uploaded_are_not_read(session, address, path):
    for endpoint in ("restore", "examine", "import_adapter"):
        answer = ask_raw(address, endpoint, FILE_ENDPOINTS[endpoint](file_data(path)))
        assert "root:" not in answer and ("error" in answer or answer.startswith("HTTP 4") or "no image" in answer)
    for route in ("file=", "file/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                f"{address}gradio_api/{route}{session.library.folder}/amber/unet/adapter_config.json"
            )
        assert refused.value.code in (403, 404)


def bomb(side: int) -> bytes:
    """A small file that decodes to many pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_images_that_are_too_large_once_decoded_are_refused(client, tmp_path, session):
    (tmp_path / "bomb.png").write_bytes(bomb(8000))
    (tmp_path / "heavy.png").write_bytes(bomb(64) + b"\0" * 31_000_000)
    for name, why in {"bomb.png": "pixels", "heavy.png": "MB"}.items():
        with pytest.raises(AppError, match=why):
            client.predict(prompt="a", steps=1, image=handle_file(str(tmp_path / name)), api_name="/generate")
        report, _ = client.predict([handle_file(str(tmp_path / name))], api_name="/examine")
        assert name in report and why in report


def giant(side: int) -> bytes:
    """A PNG whose header alone says that it has many pixels."""
    small = bomb(8)
    header = small[12:16] + side.to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"steps": "abc"}, "steps must be a whole number; found 'abc'"),
        ({"seed": 1.5, "new_seed": False}, "seed must be a whole number; found '1.5'"),
        ({"prompt": ["a"]}, "prompt must be a text"),
        ({"scheduler": "Heun"}, "no scheduler 'Heun'"),
        ({"combine": "sum"}, "combine is 'sum'"),
        ({"image": b"no image"}, "it.png is no image"),
        ({"image": giant(30_000)}, r"it\.png .*pixels"),
        ({"control_image": b"no image", "adapters": ["edges"]}, "it.png is no image"),
        ({"control_image": giant(30_000), "adapters": ["edges"]}, r"it\.png .*pixels"),
        ({"control_image": bomb(64), "adapters": ["amber"]}, "choose a control"),
        ({"control_image": bomb(64), "adapters": ["edges"], "annotator": ["own"]}, "no annotator"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(client, address, tmp_path, changes, why):
    values = dict(zip(SETTINGS, in_order(wish(0)), strict=True)) | changes
    for name in ("image", "control_image"):
        if values[name]:
            (tmp_path / "it.png").write_bytes(values[name])
            uploaded = httpx.post(
                f"{address}gradio_api/upload", files={"files": (tmp_path / "it.png").open("rb")}
            ).json()
            values[name] = file_data(uploaded[0]) | {"orig_name": "it.png"}
    answer = ask_raw(address, "generate", list(values.values()))
    assert re.search(why, json.loads(answer.split("event: error\ndata: ")[1].splitlines()[0])["error"])


def test_what_no_endpoint_can_read_is_refused_with_a_sentence(address, subject):
    for endpoint, data in {
        "teach": [[], None, *[""] * 10],
        "annotate": [[], {"path": None, "url": "/etc/passwd"}],
    }.items():
        assert f"/{endpoint} cannot read" in ask_raw(address, endpoint, data)
    for endpoint, data in {"import_adapter": [[], None], "rename": ["amber", None]}.items():
        assert "is no name" in ask_raw(address, endpoint, data)


def test_captions_and_crops_stay_with_their_images(client, session, tmp_path):
    from hra_diffusion.studio.tabs.training_form import lesson_of

    files = []
    for name in ("one/a.png", "other/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bomb(40 + len(files)))
        files.append(tmp_path / name)
    said = [["a.png", "asleep", "middle"], ["a.png", "at play", "start"]]
    table = {"headers": ["image", "caption", "crop"], "data": said}
    uploaded = [handle_file(str(file)) for file in files]
    _, shown = client.predict(uploaded, table, api_name="/examine")
    assert shown["value"]["data"] == [*said, ["b.png", "", "whole"]]
    assert client.predict(uploaded[2:], api_name="/examine")[1]["value"]["data"] == [["b.png", "", "whole"]]
    words = ["a name", "cat", "sks", "a photo of", "Usual", *[""] * 5]
    sittings = lesson_of([[str(file) for file in files], said, *words]).sittings
    assert [(each.caption, each.crop) for each in sittings] == [
        ("asleep", "middle"),
        ("at play", "start"),
        ("", "whole"),
    ]


def test_more_images_than_a_lesson_takes_are_not_passed_over(subject):
    from hra_diffusion.studio.engine.training_job import examine

    with pytest.raises(HRAError, match=r"at most 200 images.* found 201"):
        examine(subject[:1] * 201)


def test_messages_name_files_and_no_folders(client, session, tmp_path):
    from hra_diffusion.studio.tabs.common import without_folders

    (tmp_path / "a.zip").write_bytes(archive({"unet/adapter_config.json": b"{", "unet/adapter_model.safetensors": b""}))
    with pytest.raises(AppError) as refused:
        client.predict([handle_file(str(tmp_path / "a.zip"))], "new one", api_name="/import_adapter")
    assert str(refused.value).startswith("new one/unet/adapter_config.json is no JSON")
    assert without_folders("Cannot read '/a/b c/d.json'; see https://x.y/z, a/b") == (
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
def test_archives_that_hold_no_adapter_leave_nothing(client, session, tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    before = set(session.folder.parent.rglob("*"))
    with pytest.raises(AppError):
        client.predict([handle_file(str(tmp_path / "a.zip"))], "new one", api_name="/import_adapter")
    new = {
        path for path in set(session.folder.parent.rglob("*")) - before if session.cache not in [path, *path.parents]
    }
    assert new == set()


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """An adapter's two files as members of an archive."""
    return {f"{prefix}{path.name}": path.read_bytes() for path in folder.iterdir()}


def come_in(session, folder: Path, members: dict[str, bytes], *, packed: bool = True):
    """Bring in an archive of these members, or the members themselves; the library's entry of it."""
    paths = [folder / "it.zip"] if packed else [folder / name for name in members]
    for path in paths:
        path.write_bytes(archive(members) if packed else members[path.name])
    return bring_in(session.model, session.library, paths, "newcomer")[0]


@pytest.mark.parametrize(("prefix", "packed"), [("", False), ("", True), ("amber/", True)])
def test_files_of_peft_come_in_as_those_of_the_component_that_they_fit(
    session, adapter_folders, tmp_path, prefix, packed
):
    members = files_of(adapter_folders["amber"] / "unet", prefix)
    try:
        entry = come_in(session, tmp_path, members, packed=packed)
        assert entry.components == ("unet",)
        request = GenerateRequest(adapters=(AdapterUse(name="newcomer"),), steps=1, width=32, height=32)
        assert any(isinstance(each, Drawn) for each in session.model.draw(request, threading.Event()))
    finally:
        session.library.delete("newcomer")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("target_modules", r"(\w+\.?)+!"),
        ("exclude_modules", r"(\w+\.?)+!"),
        ("layers_pattern", [r"(\w+\.?)+!"]),
        ("modules_to_save", [r"(\w+\.?)+!"]),
    ],
)
def test_patterns_of_others_are_matched_with_nothing(session, adapter_folders, tmp_path, field, said):
    members = files_of(adapter_folders["amber"] / "unet")
    settings = json.loads(members["adapter_config.json"]) | {field: said}
    members["adapter_config.json"] = json.dumps(settings).encode()
    with pytest.raises(HRAError, match=f"has {field} .* may be a pattern"):
        come_in(session, tmp_path, members)


def test_the_run_s_settings_and_image_come_in_with_an_adapter(session, adapter_folders, tmp_path):
    members = files_of(adapter_folders["amber"] / "unet", "amber/unet/")
    members["amber/config.toml"] = b'[data]\ninstance_prompt = "a photo of a sks cat"\n'
    members["amber/thumbnail.png"] = bomb(2000)
    try:
        entry = come_in(session, tmp_path, members)
        assert entry.trigger == "a photo of a sks cat"
        with Image.open(entry.thumbnail) as image:
            assert max(image.size) <= 640
    finally:
        session.library.delete("newcomer")
    for name, content in {"thumbnail.png": b"no image", "config.toml": b"a = " + b"[" * 9999}.items():
        with pytest.raises(HRAError):
            come_in(session, tmp_path, members | {f"amber/{name}": content})
    assert "newcomer" not in [entry.name for entry in session.library.entries()]


def test_an_adapter_goes_out_and_comes_in_again(client, session, tmp_path):
    there = session.library.entries()
    exported = client.predict("amber", "kohya", 1.0, "fp32", api_name="/export_lora")
    client.predict([handle_file(exported)], "amber again", api_name="/import_adapter")
    before, after = (
        next(
            each
            for each in session.model.draw(
                GenerateRequest(**shared, adapters=(AdapterUse(name=name),)), threading.Event()
            )
            if isinstance(each, Drawn)
        )
        for shared in ({"prompt": "a cat", "steps": 2, "width": 32, "height": 32},)
        for name in ("amber", "amber again")
    )
    difference = max(abs(a - b) for a, b in zip(before.image.tobytes(), after.image.tobytes(), strict=True))
    assert difference <= 2
    client.predict("amber again", "birch 2", api_name="/rename")
    client.predict("birch 2", api_name="/delete")
    assert session.library.entries() == there


def test_a_merged_model_draws_what_its_adapters_draw_together(client, session, tmp_path):
    import torch

    from hra_diffusion.pipelines import generate_image, load_pipeline

    uses = [AdapterUse(name="amber", strength=0.5), AdapterUse(name="birch", strength=1.25)]
    others = [{"name": "birch", "strength": 1.25}]
    file = client.predict("amber", 0.5, "fp32", True, others, "lie", api_name="/export_model")
    with zipfile.ZipFile(file) as opened:
        opened.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if (path / "model_index.json").is_file())
    request = GenerateRequest(prompt="a cat", adapters=tuple(uses), steps=2, width=32, height=32, guidance_scale=1)
    acting = next(each for each in session.model.draw(request, threading.Event()) if isinstance(each, Drawn)).image
    merged = generate_image(
        load_pipeline(str(folder)), "a cat", 0, height=32, width=32, num_inference_steps=2, guidance_scale=1.0
    )
    one, other = (torch.tensor(list(image.tobytes())).float() for image in (acting, merged))
    assert (one - other).abs().max() <= 2
    plain = next(
        each for each in session.model.draw(request.without_adapters(), threading.Event()) if isinstance(each, Drawn)
    ).image
    assert plain.tobytes() != acting.tobytes()


def test_every_action_is_a_named_endpoint(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    wanted = "generate before_after stop restore annotate compare examine estimate teach run runs stop_run resume_run"
    library = "adapters adapter rename delete import_adapter export_lora export_model push"
    assert named.keys() == {f"/{name}" for name in f"{wanted} {library}".split()}
    assert [each["parameter_name"] for each in named["/generate"]["parameters"]][:2] == ["prompt", "negative_prompt"]


def test_publishing_asks_for_a_token_and_says_what_the_hub_said(client):
    with pytest.raises(AppError, match="access token"):
        client.predict("amber", "somebody/amber", "mit", "", api_name="/push")
    with pytest.raises(AppError, match=r"somebody/amber|hub|offline"):
        client.predict("amber", "somebody/amber", "mit", "hf_wrong", api_name="/push")


def test_presets_say_what_they_cost_once_it_was_measured(session):
    from hra_diffusion.studio.tabs.training_form import presets

    told = {"time": "0.50 s a step, 0:01:40 in all, and 20 s before", "memory": "1.25 GB at most in two"}
    assert not any("GB" in said for said, _ in presets(session))
    session.costs.keep(session.model.base.source, told)
    try:
        assert {name: said for said, name in presets(session)}["Usual"] == "Usual · 200 steps · 2 min, 1.2 GB"
    finally:
        session.costs.file.unlink()


def test_whoever_comes_back_can_stop_a_run_that_began_after_the_studio(client, session, subject):
    from hra_diffusion.studio.engine.training_job import Preset, TrainingImage, TrainingJob

    effort = Preset(steps=2000, rank=2, class_images=0, looks=0)
    session.teach(
        TrainingJob(name="a long one", sittings=(TrainingImage(file=subject[0]),), subject="cat", effort=effort)
    )
    try:
        client.predict("a long one", api_name="/stop_run")
        with pytest.raises(AppError, match="no run named"):
            client.predict("another", api_name="/stop_run")
    finally:
        session.runs.stop("a long one")
    end = time.monotonic() + 60
    while session.runs.running() and time.monotonic() < end:
        time.sleep(0.1)
    assert client.predict("a long one", api_name="/run")["status"] == "stopped"
    assert session.runs.get("a long one").resumable


def test_an_empty_number_of_a_lesson_is_the_preset_s_and_what_is_no_number_is_refused(subject):
    from hra_diffusion.studio.engine.training_job import PRESETS
    from hra_diffusion.studio.tabs.training_form import lesson_of

    words = [[str(subject[0])], [], "a name", "cat", "sks", "a photo of", "Quick look"]
    assert lesson_of([*words, "", None, " ", "", ""]).effort == PRESETS["Quick look"]
    assert lesson_of([*words, "7", 6, "0", 5.0, ""]).effort.steps == 7
    with pytest.raises(HRAError, match="Rank must be a whole number"):
        lesson_of([*words, "", "four", "", "", ""])


def test_errors_keep_their_class(session):
    with pytest.raises(HRAError):
        next(
            session.model.draw(
                GenerateRequest(adapters=(AdapterUse(name="nobody"),), width=32, height=32), threading.Event()
            )
        )
