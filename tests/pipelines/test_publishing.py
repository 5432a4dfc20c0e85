"""Publishing and loading of adapters with huggingface_hub itself, against a small hub on this machine."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hra_diffusion import load_hra_weights, push_hra_weights, save_hra_weights
from hra_diffusion.errors import AdapterFileError, ImageError, OutputError
from hra_diffusion.pipelines.publishing import _numbers

PROJECT = Path(__file__).resolve().parents[2]


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface for pushing and loading; complete commits are kept by branch."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch's last commit, or of a commit."""
        commits = self.branches.get(repository, {})
        every = [commit for branch in commits.values() for commit in branch]
        named = {sha(commit): commit for commit in every}
        return named.get(revision) or (commits.get(revision) or [{}])[-1]


def sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def blob(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, items=None, **content) -> None:
        self.answer(json.dumps(items or content).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^?]+)(\?.*)?", self.path):
            files, created = self.server.files(*match.groups()[:2]), self.server.branches.get(match[1]) == {"main": []}
            if not (files or created):
                self.answer(b"", 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            self.json(id=match[1], sha=sha(files), siblings=siblings, private=False, tags=[], downloads=0, likes=0)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)(\?.*)?", self.path):
            files = self.server.files(*match.groups()[:2])
            self.json([{"type": "file", "path": n, "size": len(data), "oid": blob(data)} for n, data in files.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            files = self.server.files(match[1], match[2])
            if match[3] in files:
                content = files[match[3]]
                self.answer(content, ETag=f'"{blob(content)}"', X_Repo_Commit=sha(files))
            else:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha(files))
        else:
            self.answer(b"", 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_of_the_test":
            self.answer(b"", 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            self.server.branches.setdefault(repository, {"main": []})
            self.json(url=f"{self.server.address}/{repository}")
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/[^/]+", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.json(files=files)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+)", self.path):
            files = dict(self.server.files(match[1], match[2]))
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
            self.server.branches[match[1]].setdefault(match[2], []).append(files)
            self.json(
                success=True, commitOid=sha(files), commitUrl=f"{self.server.address}/{match[1]}/commit/{sha(files)}"
            )
        elif self.path == "/api/validate-yaml":
            self.json(errors=[], warnings=[])
        else:
            self.answer(b"", 404)


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def online(hub, tmp_path):
    """A function that runs code in an online process with our hub instead of the real one."""

    def run(code: str, token: str = "hf_of_the_test") -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token}
        environment |= {"PYTHONPATH": str(PROJECT), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )

    return run


PUSH = """
import sys
from hra_diffusion.cli.main import main
sys.exit(main({arguments!r}))
"""
LOAD = """
import torch
from diffusers import StableDiffusionPipeline
from hra_diffusion import list_hra_adapters, load_hra_weights, save_hra_weights
pipe = StableDiffusionPipeline.from_pretrained({base!r}, use_safetensors=True)
load_hra_weights(pipe, "tester/dog", "whole")
load_hra_weights(pipe, "tester/dog", "part", subfolder="more/dogs", revision="{revision}")
save_hra_weights(pipe, {folder!r}, "part", push_to_hub=True, repo_id="someone/copy", license="mit")
try:
    load_hra_weights(pipe, "tester/nothing", "nothing")
except Exception as error:
    print(type(error).__name__, error)
print(list(list_hra_adapters(pipe)))
"""


@pytest.mark.slow
def test_a_run_is_published_with_its_model_card_and_loaded_again(hub, online, trained, tiny_sd, pipe, image, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "beach.png")
    options = ["--license", "apache-2.0", "--images", str(tmp_path / "beach.png"), "a sks dog on a beach"]
    done = online(PUSH.format(arguments=["push", str(trained), "dog", *options]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/tester/dog/commit/{sha(hub.files('tester/dog'))}"
    files = hub.files("tester/dog")
    parts = {
        f"{component}/adapter_{name}"
        for component in ("unet", "text_encoder")
        for name in ("config.json", "model.safetensors")
    }
    assert files.keys() == parts | {"README.md", "before_after.png", "beach.png"}
    check_card(files, tiny_sd)

    done = online(PUSH.format(arguments=["push", str(trained / "adapter"), "tester/dog", "--subfolder", "more/dogs"]))
    assert done.returncode == 0, done.stderr
    latest = hub.files("tester/dog")
    assert files.items() <= latest.items()

    done = online(LOAD.format(base=str(tiny_sd), revision=sha(latest), folder=str(tmp_path / "copy")))
    assert done.returncode == 0, done.stderr
    refused, listed = done.stdout.strip().splitlines()[0], done.stdout.strip().splitlines()[-1]
    assert refused.startswith("AdapterFileError 'tester/nothing' is no folder here (relative to ")
    assert listed == "['whole', 'part']"
    copy = hub.files("someone/copy")
    assert all(latest[name] == copy[name] for name in parts if name.endswith(".safetensors"))

    load_hra_weights(pipe, trained, "local")
    expected = image(pipe)
    load_hra_weights(pipe, tmp_path / "copy", "copied")
    assert torch.equal(image(pipe), expected)


LOAD_CONTROL = """
from diffusers import StableDiffusionPipeline
from hra_diffusion import load_hra_control, load_hra_weights
pipe = StableDiffusionPipeline.from_pretrained({base!r}, use_safetensors=True)
try:
    load_hra_weights(pipe, "tester/canny")
except Exception as error:
    print(error)
print(load_hra_control(pipe, "tester/canny").annotator.name)
"""


@pytest.mark.slow
def test_a_control_is_published_with_its_encoder_and_loaded_again(hub, online, control_folder, tiny_sd):
    done = online(PUSH.format(arguments=["push", str(control_folder), "canny"]))
    assert done.returncode == 0, done.stderr
    page = hub.files("tester/canny")["README.md"].decode()
    assert 'control = load_hra_control(pipe, "tester/canny")\nwith control.guiding(pipe, Image.open("…")):' in page
    done = online(LOAD_CONTROL.format(base=str(tiny_sd)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("tester/canny is a control, which needs its encoder")
    assert done.stdout.splitlines()[-1] == "canny"


def check_card(files, tiny_sd) -> None:
    card = ModelCard(files["README.md"].decode())
    assert card.data.tags == ["text-to-image", "diffusers", "hra", "peft"]
    assert (card.data.license, card.data.instance_prompt) == ("apache-2.0", "a photo of a sks dog")
    assert card.data.to_dict()["widget"] == [{"text": "a sks dog on a beach", "output": {"url": "beach.png"}}]
    assert 'load_hra_weights(pipe, "tester/dog")' in card.text
    assert "](before_after.png)" in card.text
    assert "| `max_train_steps` | `6` |" in card.text
    assert tiny_sd.name in card.text
    assert not any(str(tiny_sd.parent).encode() in content for content in files.values())


def test_an_existing_model_card_is_left_unchanged(hub, online, adapters):
    hub.branches["tester/a"] = {"main": [{"README.md": b"mine"}]}
    done = online(PUSH.format(arguments=["push", str(adapters / "a"), "tester/a"]))
    assert done.returncode == 0, done.stderr
    assert hub.files("tester/a")["README.md"] == b"mine"
    assert "unet/adapter_config.json" in hub.files("tester/a")


def test_a_refusal_of_the_hub_is_reported_in_one_sentence_and_nothing_is_published(hub, online, adapters):
    done = online(PUSH.format(arguments=["push", str(adapters / "a"), "tester/a"]), token="hf_of_somebody_else")
    assert done.returncode == 2
    assert "\nError: The adapter" in f"\n{done.stderr}"  # libraries may say something before
    assert "cannot be published as 'tester/a'" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.branches == {}


def test_numbers_of_an_evaluation_are_in_the_model_card(adapters, tmp_path):
    from hra_diffusion.formats.model_card import ModelCard as OurCard

    card = ModelCard(
        str(OurCard(name="x", repository="a/x", components=["unet"], rank=8, base_model="a/b", metrics={"DINO": 0.5}))
    )
    assert card.data.base_model == "a/b"
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("DINO", 0.5)]


def test_numbers_of_a_control_are_those_with_the_right_condition():
    modes = {"controlled": {"value": 0.6}, "shuffled": {"value": 0.2}}
    assert _numbers({"canny F1": modes}) == {"canny F1": 0.6}
    assert _numbers([{"name": "DINO", "value": 0.5, "mode": "adapter"}, {"name": "DINO", "mode": "base"}]) == {
        "DINO": 0.5
    }


def test_an_impossible_publication_is_refused_before_an_upload(adapters, pipe, tmp_path):
    with pytest.raises(AdapterFileError, match="no adapter in"):
        push_hra_weights(tmp_path, "tester/a")
    with pytest.raises(ImageError, match=r"none\.png cannot be read"):
        push_hra_weights(adapters / "a", "tester/a", images={"none.png": "a dog"})
    with pytest.raises(OutputError, match="cannot be published as 'tester/a'"):  # offline, as all tests are
        push_hra_weights(adapters / "a", "tester/a")
    load_hra_weights(pipe, adapters / "a")
    with pytest.raises(OutputError, match="cannot be published as 'copy'"):
        save_hra_weights(pipe, tmp_path / "copy", push_to_hub=True)
    assert (tmp_path / "copy" / "unet").is_dir()
