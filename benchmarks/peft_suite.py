"""PEFT's own tests of HRA, with HRAModel and HRAConfig of this project in PEFT's place.

Run it with the folder of PEFT's sources in the installed release, a clone or its unpacked sdist:

    pip download --no-deps --no-binary peft peft==$(pip show peft | sed -n 's/Version: //p')
    tar xzf peft-*.tar.gz
    python benchmarks/peft_suite.py peft-*/

    --files …      of the test files
    --select HRA   pytest's -k
    --originals    PEFT's own classes, on the same models

No hub is needed: models of the hub are replaced by random ones of the same classes. Each file runs in its own process
with one thread. The table counts the tests; the lists below it have the first line of each error, and the reasons of
skipped tests.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from peft_models import save_models

FILES = ("custom_models", "decoder_models", "encoder_decoder_models", "feature_extraction_models", "stablediffusion")
_LIBRARIES = ("peft", "transformers", "diffusers", "accelerate", "torch")


@dataclass
class Outcomes:
    """The outcomes of one test file.

    Attributes:
        passed: the number of passed tests.
        failed: the first line of each error → the tests with it.
        skipped: each reason → the number of tests.
        crash: the end of pytest's output, if it could not run.
    """

    passed: int = 0
    failed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    skipped: Counter[str] = field(default_factory=Counter)
    crash: str = ""

    @property
    def failures(self) -> int:
        """Number of failed tests."""
        return sum(map(len, self.failed.values()))


def run_file(tests: Path, cache: Path, name: str, select: str, *, ours: bool = True) -> Outcomes:
    """Run the tests of one file that match `select` in a process of their own."""
    report = tests.parent / f"{name}.xml"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", select, f"--junitxml={report}"]
    plugin = ["-p", "peft_in_place"] if ours else []
    run = [*command, *plugin, f"tests/test_{name}.py"]
    finished = subprocess.run(run, cwd=tests.parent, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        return Outcomes(crash=(finished.stdout + finished.stderr)[-2000:])
    return read_report(report)


def read_report(report: Path) -> Outcomes:
    """Count the outcomes in a report of pytest in JUnit's format."""
    outcomes = Outcomes()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failure = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        skipped = case.find("skipped")
        if failure is not None:
            outcomes.failed[_first_line(failure.get("message", ""))].append(str(case.get("name")))
        elif skipped is not None:
            outcomes.skipped[_first_line(skipped.get("message", ""))] += 1
        else:
            outcomes.passed += 1
    return outcomes


def _first_line(message: str) -> str:
    """Return the first line of a message without addresses, which differ from run to run."""
    return re.sub(r"0x[0-9a-f]+", "0x…", message.strip().partition("\n")[0])[:200]


def copy_tests(sources: Path, folder: Path) -> Path:
    """Copy PEFT's test files into an empty folder: an sdist lacks tests/__init__.py, and a clone holds PEFT itself."""
    tests = folder / "tests"
    tests.mkdir()
    for name in (*(f"test_{file}.py" for file in FILES), "testing_common.py", "testing_utils.py"):
        shutil.copy(sources / "tests" / name, tests)
    (tests / "__init__.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:warnings\n", "utf-8")
    return tests


def table(results: dict[str, Outcomes]) -> str:
    """Return the Markdown table of all files, with their sum in the last line."""
    lines = ["| file | passed | failed | skipped |", "|---|---:|---:|---:|"]
    counts = {name: (done.passed, done.failures, done.skipped.total()) for name, done in results.items()}
    lines += [f"| test_{name}.py | {' | '.join(map(str, numbers))} |" for name, numbers in counts.items()]
    passed, failed, skipped = (sum(column) for column in zip(*counts.values(), strict=True))
    share = passed / max(1, passed + failed)
    return "\n".join([*lines, f"| all | {passed} ({share:.1%}) | {failed} | {skipped} |"])


def details(results: dict[str, Outcomes]) -> str:
    """Return the lists of errors and of reasons to skip."""
    lines: list[str] = []
    for name, done in results.items():
        lines += [f"\ntest_{name}.py could not run:\n{done.crash}"] if done.crash else []
        for error, tests in done.failed.items():
            lines.append(f"\n- test_{name}.py, {len(tests)} failed: {error}")
            lines += [f"  - {test}" for test in tests]
    skipped = sum((done.skipped for done in results.values()), Counter[str]())
    lines += ["", *(f"- {number} skipped: {reason}" for reason, number in skipped.most_common())]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--files", nargs="+", default=FILES, choices=FILES)
    parser.add_argument("--select", default="HRA")
    parser.add_argument("--originals", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tests, cache = copy_tests(options.sources, Path(folder)), Path(folder) / "hub"
        save_models(cache)
        results = {
            name: run_file(tests, cache, name, options.select, ours=not options.originals) for name in options.files
        }
    print(", ".join(f"{library} {version(library)}" for library in _LIBRARIES))
    print(f"\n{table(results)}\n{details(results)}")


if __name__ == "__main__":
    main()
