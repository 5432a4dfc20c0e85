"""The doctor on this machine and on simulated ones: their facts are given, the checks and their arithmetic are real."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hra_diffusion.cli.main import main
from hra_diffusion.doctor.arithmetic import check_attention, check_precisions
from hra_diffusion.doctor.base import check_base
from hra_diffusion.doctor.examination import examine_installation, run_check
from hra_diffusion.doctor.installation import PACKAGES, check_packages, check_system, check_torch
from hra_diffusion.doctor.kernels import check_kernels
from hra_diffusion.doctor.probes import Accelerator, Build, Cpu, InstalledGpu, Probes, list_installed_gpus
from hra_diffusion.doctor.report import Section, redact
from hra_diffusion.doctor.speed import LORA, check_speed
from hra_diffusion.doctor.storage import check_storage
from hra_diffusion.householder import fused
from tests.triton_interpreter import interpret

PROJECT = Path(__file__).resolve().parents[2]
GEFORCE = InstalledGpu("NVIDIA", "NVIDIA GeForce RTX 4090", "12.4")
CPU_BUILD, CUDA_BUILD = Build("2.13.0+cpu"), Build("2.13.0+cu130", cuda="13.0")
REQUIREMENTS = [
    "torch>=2.13",
    "diffusers>=0.36",
    "accelerate>=1.10",
    'torchao>=0.16; extra == "int8"',
    'gradio<7,>=6.10; extra == "studio"',
    'peft==0.21.2; extra == "test"',
    'triton>=3.7; sys_platform == "linux" and extra == "test"',
    'tomli; python_version < "3.11"',
]
LINUX = Probes(
    requirements=lambda name: REQUIREMENTS,
    system=lambda: "Linux",
    machine=lambda: "x86_64",
    build=lambda: CPU_BUILD,
    cpu=lambda: Cpu("Xeon", ("AMX", "AVX512-BF16", "AVX2")),
    device=lambda: "cpu",
    accelerators=list,
    installed_gpus=list,
    environment=dict,
    available_memory=lambda: (20 * 10**9, 32 * 10**9),
    free_space=lambda folder: 100 * 10**9,
)
WITH_GPU = {"accelerators": lambda: [Accelerator("cuda", GEFORCE.name, 20 * 10**9, 24 * 10**9)]}


def findings(check, probes: Probes, *arguments) -> list[str]:
    """Return problem and advice of a check's findings."""
    section = Section("check")
    check(probes, section, *arguments)
    return [f"{finding.problem} {finding.advice}" for finding in section.findings]


def absent(*names: str):
    """Return a function like importlib.metadata.version without some packages."""

    def version(name: str) -> str:
        if name in names:
            raise PackageNotFoundError(name)
        return LINUX.package_version(name)

    return version


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, None),
        (WITH_GPU, None),
        ({"installed_gpus": lambda: [GEFORCE]}, "There is an NVIDIA GPU (NVIDIA GeForce RTX 4090)"),
        ({"installed_gpus": lambda: [GEFORCE]}, "PyTorch's pip index for CUDA 12 (its name begins with cu12)"),
        ({"installed_gpus": lambda: [InstalledGpu("NVIDIA", "GPU")]}, "nvidia-smi shows it"),
        ({"installed_gpus": lambda: [InstalledGpu("NVIDIA", "Tesla K80", "11.4")]}, "Update the NVIDIA driver"),
        ({"installed_gpus": lambda: [InstalledGpu("AMD", "GPU")]}, "pip index for ROCm"),
        ({"installed_gpus": lambda: [GEFORCE], "environment": lambda: {"CUDA_VISIBLE_DEVICES": ""}}, None),
        ({"installed_gpus": lambda: [GEFORCE], "build": lambda: CUDA_BUILD}, "driver's CUDA is 12.4, torch's is 13.0"),
        ({"build": lambda: CUDA_BUILD}, "sees no GPU. Install or update the GPU's driver."),
        ({"system": lambda: "Windows", "installed_gpus": lambda: [GEFORCE]}, "There is an NVIDIA GPU"),
        ({"available_memory": lambda: (10**9, 16 * 10**9)}, "Only 1.0 GB of main memory are free."),
        ({"accelerators": lambda: [Accelerator("cuda", "T4", 10**9, 16 * 10**9)]}, "Other programs use most"),
        ({"system": lambda: "Darwin", "build": lambda: Build("2.13.0", mps=True)}, "Update macOS"),
    ],
)
def test_each_fault_of_a_machine_is_a_finding_with_advice(facts, words):
    found = findings(check_torch, replace(LINUX, **facts))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]
    assert "://" not in "".join(found)


def test_a_mac_with_mps_is_well():
    mac = replace(
        LINUX,
        system=lambda: "Darwin",
        machine=lambda: "arm64",
        build=lambda: Build("2.13.0", mps=True),
        device=lambda: "mps",
        accelerators=lambda: [Accelerator("mps", "Apple GPU", 10 * 10**9, 16 * 10**9)],
    )
    assert findings(check_system, mac) == findings(check_torch, mac) == findings(check_kernels, mac, 8) == []
    assert "arm64" in findings(check_system, replace(mac, machine=lambda: "x86_64"))[0]


def test_variables_of_torch_are_reported_and_others_are_not():
    section = Section("system")
    variables = {"OMP_NUM_THREADS": "1", "HF_TOKEN": "hf_x", "CUDA_VISIBLE_DEVICES": "0", "LANG": "de"}
    check_system(replace(LINUX, environment=lambda: variables), section)
    assert section.facts["variables"] == "CUDA_VISIBLE_DEVICES=0, OMP_NUM_THREADS=1"


def test_warnings_of_torch_about_the_driver_are_part_of_the_finding():
    def accelerators():
        import warnings

        warnings.warn("CUDA initialization: The NVIDIA driver is too old.", stacklevel=1)
        return []

    facts = {"build": lambda: CUDA_BUILD, "installed_gpus": lambda: [GEFORCE], "accelerators": accelerators}
    (finding,) = findings(check_torch, replace(LINUX, **facts))
    assert "The NVIDIA driver is too old." in finding


def test_optional_packages_may_be_absent_and_required_ones_not():
    optional = ("peft", "triton", "torchao", "bitsandbytes", "gradio", "opencv-python-headless", "imagehash")
    section = Section("packages")
    check_packages(replace(LINUX, package_version=absent(*optional)), section)
    assert section.findings == []
    assert set(PACKAGES) <= set(section.facts)
    (finding,) = findings(check_packages, replace(LINUX, package_version=absent("accelerate")))
    assert "accelerate is not installed" in finding
    assert 'pip install "accelerate>=' in finding


def test_a_package_out_of_bounds_is_a_finding_and_bounds_of_the_tests_are_none():
    old = {"diffusers": "0.20.0", "torchao": "0.1", "peft": "0.15"}
    version = lambda name: old.get(name) or LINUX.package_version(name)  # noqa: E731
    found = findings(check_packages, replace(LINUX, package_version=version))
    assert [finding.split()[0] for finding in found] == ["diffusers", "torchao"]
    assert "hra_diffusion needs >=0.36" in found[0]


def test_packages_are_reported_without_an_installation_of_the_project():
    section = Section("packages")

    def requirements(name):
        raise PackageNotFoundError(name)

    check_packages(replace(LINUX, requirements=requirements), section)
    assert section.facts["hra_diffusion"] == "not installed: running from a folder"
    assert section.findings == []


def test_all_precisions_and_attention_work_on_a_cpu():
    assert findings(check_precisions, LINUX) == findings(check_attention, LINUX) == []


class WrongProducts(TorchDispatchMode):
    """A damaged device: products in one dtype are wrong, or fail."""

    def __init__(self, dtype: torch.dtype, *, fails: bool = False) -> None:
        super().__init__()
        self.dtype, self.fails = dtype, fails

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "_scaled_mm", "_int_mm") and args[0].dtype is self.dtype:
            if self.fails:
                raise RuntimeError("no kernel image is available for execution on the device")
            return result * 2
        return result


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp8", torch.float8_e4m3fn),
        ("int8", torch.int8),
    ],
)
def test_a_wrong_product_is_a_finding_and_a_missing_one_only_in_precisions_that_training_needs(name, dtype):
    with WrongProducts(dtype):
        (finding,) = findings(check_precisions, LINUX)
    assert f"Products in {name} are wrong on cpu" in finding
    with WrongProducts(dtype, fails=True):
        found = findings(check_precisions, LINUX)
    assert [f"Products in {name} fail" in finding for finding in found] == [True] * (name in ("fp32", "fp16", "bf16"))


def test_a_device_that_cannot_compute_gives_findings_and_ends_no_check():
    probes = replace(LINUX, device=lambda: "xpu")
    assert len(findings(check_precisions, probes)) == 3
    assert "Attention fails on xpu" in findings(check_attention, probes)[0]


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """Let the CPU pass for a device with kernels."""
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "_failed", set())


@pytest.mark.parametrize(("system", "package"), [("Linux", "triton"), ("Windows", "triton-windows")])
def test_missing_triton_is_a_finding_on_a_gpu_alone(monkeypatch, system, package):
    monkeypatch.setattr(fused, "_HAS_TRITON", False)
    probes = replace(LINUX, system=lambda: system)
    assert findings(check_kernels, probes, 8) == []
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    (finding,) = findings(check_kernels, probes, 8)
    assert finding.endswith(f"Run: pip install {package}")


@pytest.mark.usefixtures("kernels_on_cpu")
def test_a_kernel_that_cannot_be_compiled_is_shown_with_the_whole_error(monkeypatch):
    from hra_diffusion.householder import triton_launches

    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find a C compiler.\nPlease set CC.")

    monkeypatch.setattr(triton_launches, "reflect_kernel", Broken())
    section = Section("kernels")
    check_kernels(LINUX, section, 8)
    assert [finding.problem for finding in section.findings] == [
        f"The fused kernels for {dtype} rows and rank 8 fail: RuntimeError: Failed to find a C compiler."
        for dtype in ("float16", "bfloat16", "float32")
    ]
    assert "Please set CC." in section.findings[0].details
    assert "readable path" in section.findings[0].advice


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.usefixtures("kernels_on_cpu")
def test_the_kernels_agree_with_the_formula_unless_their_numbers_are_wrong(monkeypatch):
    from hra_diffusion.householder import triton_launches

    interpret(monkeypatch)
    section = Section("kernels")
    check_kernels(LINUX, section, 2)
    assert section.findings == []
    assert [fact.split(" (")[0] for fact in section.facts.values()][1:] == ["agree with the readable formula"] * 3
    backward = triton_launches.reflect_rows_backward

    def wrong(*arguments):
        grad_x, grad_U, grad_M = backward(*arguments)
        return grad_x, grad_U * 1.1, grad_M

    monkeypatch.setattr(triton_launches, "reflect_rows_backward", wrong)
    assert "rank 2 give wrong results" in findings(check_kernels, LINUX, 2)[0]


@pytest.mark.usefixtures("kernels_on_cpu")
def test_a_rank_without_kernels_takes_the_readable_path_without_a_finding():
    section = Section("kernels")
    check_kernels(LINUX, section, 200)
    assert section.findings == []
    assert section.facts["float16"] == "the readable path is used: 200 columns on this device"


@pytest.mark.slow
def test_the_speed_of_a_step_is_reported_without_peft_too(monkeypatch):
    section = Section("speed")
    check_speed(LINUX, section, seconds=0)
    assert [fact for fact in section.facts.values() if " ms (" in fact] == list(section.facts.values())[1:]
    assert LORA in section.facts
    monkeypatch.setitem(sys.modules, "peft", None)
    section = Section("speed")
    check_speed(LINUX, section, seconds=0)
    assert section.facts[LORA] == "peft is not installed"
    assert section.findings == []


def test_little_disk_space_and_folders_that_cannot_be_written_are_findings(tmp_path):
    folders = {"downloaded models": tmp_path / "new" / "hub", "temporary files": tmp_path}
    probes = replace(LINUX, folders=lambda: folders)
    assert findings(check_storage, probes) == []
    found = findings(check_storage, replace(probes, free_space=lambda folder: 5 * 10**9))
    assert [finding.partition(", or")[0] for finding in found] == [
        "Only 5.0 GB are free for downloaded models. Free some"
    ]
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert len(findings(check_storage, probes)) == 2


def test_the_embedded_base_loads_and_a_missing_one_is_a_finding(monkeypatch, tmp_path):
    section = Section("base")
    check_base(LINUX, section)
    assert section.facts == {"emoji-sd": "loads and generates"}
    assert section.findings == []
    monkeypatch.setattr("hra_diffusion.doctor.base.DATA", tmp_path)
    (finding,) = run_check("base", check_base, LINUX).findings
    assert "ModelError" in finding.problem


def raising(*_):
    raise OSError("[WinError 126] fbgemm.dll is missing")


@pytest.mark.parametrize("name", [field.name for field in fields(Probes)])
def test_a_probe_that_raises_is_a_finding(name):
    checks = [check_system, check_packages, check_torch, check_precisions, check_attention, check_storage]
    sections = [run_check("check", check, replace(LINUX, **{name: raising})) for check in checks]
    problems = [finding.problem for section in sections for finding in section.findings]
    assert problems
    assert all("OSError: [WinError 126]" in problem for problem in problems)


def test_a_torch_that_cannot_be_imported_is_a_finding_and_ends_the_report():
    *_, last = examine_installation(replace(LINUX, build=raising))
    assert last.title == "torch"
    assert "fbgemm.dll is missing" in last.findings[0].problem


def test_what_libraries_print_is_reported_if_a_check_fails_and_hidden_otherwise(capsys):
    def chatty(probes, section):
        print("loading libraries")
        raise ValueError("broken")

    (finding,) = run_check("base", chatty, LINUX).findings
    assert finding.details.startswith("loading libraries\nTraceback")
    assert finding.details.endswith("ValueError: broken")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/x.py is missing", "~/x.py is missing"),
        ("in /home/jane: no", "in ~: no"),
        ("/Users/someone/Library/x", "~/Library/x"),
        (r"C:\Users\Some.One\AppData\x", r"~\AppData\x"),
        (repr(r"D:\Users\someone\x"), r"'~\\x'"),
        ("/home/jane/venv/lib/python3.11/site-packages/torch/x.py", "site-packages/torch/x.py"),
        ('File "/work/secret-project/hra_diffusion/text.py", line 1', 'File "hra_diffusion/text.py", line 1'),
        ("with hf_abcdefghijklmnop", "with [removed]"),
        ("via http://jane:pass@proxy:80/", "via http://[removed]@proxy:80/"),
        ("key s3cr3t-value!", "key [removed]"),
        ("CUDA error: /dev/nvidia0", "CUDA error: /dev/nvidia0"),
    ],
)
def test_the_report_has_no_user_names_home_folders_and_tokens(text, expected):
    environment = {"WANDB_API_KEY": "s3cr3t-value!", "LANG": "no secret: CUDA error"}
    assert redact(text, Path("/home/jane"), environment) == expected


def test_user_and_host_names_are_removed_from_other_paths(monkeypatch):
    monkeypatch.setenv("LOGNAME", "jane")
    monkeypatch.setattr("platform.node", lambda: "janes-laptop")
    assert redact("/data/jane/models on janes-laptop, janet") == "/data/[user]/models on [host], janet"


def test_a_report_is_text_and_json_without_private_data():
    section = Section("torch", {"build": "/home/jane/x"})
    section.warn("hf_abcdefghijklmnop is refused", "Ask /home/jane", "one\ntwo /home/jane/x")
    assert section.to_text().splitlines() == [
        "torch",
        "  build  ~/x",
        "  ! [removed] is refused",
        "    Advice: Ask ~",
        "    | one",
        "    | two ~/x",
    ]
    assert section.to_json() == {
        "facts": {"build": "~/x"},
        "findings": [{"problem": "[removed] is refused", "advice": "Ask ~", "details": "one\ntwo ~/x"}],
    }


def test_nvidia_smi_and_device_files_tell_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_installed_gpus(tmp_path) == []
    (tmp_path / "kfd").touch()
    assert list_installed_gpus(tmp_path) == [InstalledGpu("AMD", "AMD GPU")]
    (tmp_path / "nvidia0").touch()
    assert list_installed_gpus(tmp_path) == [InstalledGpu("NVIDIA", "NVIDIA GPU")]
    report = "CUDA Version                          : 12.4\n    Product Name         : NVIDIA GeForce RTX 4090\n"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{report}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert list_installed_gpus(tmp_path) == [GEFORCE]


WITHOUT_PACKAGES = """
import socket, sys

def connect(*_):
    raise AssertionError("the doctor uses the network")

socket.socket.connect = connect
sys.modules.update(dict.fromkeys(sys.argv[1:]))
from hra_diffusion.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""


def report_without(*packages: str, path: Path = PROJECT) -> tuple[int, dict]:
    """Return exit code and sections of the command, offline and where packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_PACKAGES, *packages]
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{PROJECT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    report = json.loads(done.stdout)
    findings = [finding for section in report["sections"].values() for finding in section["findings"]]
    assert report["healthy"] == (done.returncode == 0) == (not findings)
    return done.returncode, report["sections"]


@pytest.mark.slow
def test_the_command_works_offline_without_optional_packages():
    _, sections = report_without("peft", "triton", "torchao", "bitsandbytes", "gradio", "cv2", "imagehash", "scipy")
    assert list(sections) == [
        *("system", "packages", "torch", "precisions", "attention", "kernels", "speed", "storage", "base")
    ]
    assert sections["speed"]["facts"][LORA] == "peft is not installed"
    assert sections["base"] == {"facts": {"emoji-sd": "loads and generates"}, "findings": []}


@pytest.mark.slow
def test_broken_packages_are_findings_and_the_other_checks_run(tmp_path):
    code, sections = report_without("diffusers")
    broken = {title for title, section in sections.items() if "diffusers" in str(section["findings"])}
    assert (code, broken) == (1, {"speed", "base"})
    (tmp_path / "torch.py").write_text("raise OSError('libcudnn.so.9: cannot open shared object file')")
    code, sections = report_without(path=tmp_path)
    assert (code, list(sections)) == (1, ["system", "packages", "torch"])
    assert "OSError: libcudnn.so.9" in sections["torch"]["findings"][0]["problem"]


def test_the_exit_code_is_1_if_something_needs_attention(monkeypatch, capsys):
    well, ill = Section("torch", {"build": "2.13"}), Section("torch")
    ill.warn("There is an NVIDIA GPU.", "Install another build.")
    for section, code, last in ((well, 0, "All is well."), (ill, 1, "1 finding: see the lines with !")):
        monkeypatch.setattr("hra_diffusion.doctor.examination.examine_installation", lambda *_, s=section: [s])
        assert main(["doctor"]) == code
        assert capsys.readouterr().out.splitlines()[-1] == last
