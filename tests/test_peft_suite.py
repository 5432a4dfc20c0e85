"""The benchmark that runs PEFT's own tests with HRAModel in PEFT's place counts what pytest reports."""

import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = os.environ.get("PEFT_SOURCES")

REPORT = """<testsuites><testsuite name="pytest">
<testcase name="test_a"/><testcase name="test_b"/>
<testcase name="test_c"><failure message="ValueError: at 0x7f01&#10;second line">…</failure></testcase>
<testcase name="test_d"><error message="ValueError: at 0x8e02">…</error></testcase>
<testcase name="test_e"><skipped message="not for HRA"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import peft_suite

    yield peft_suite
    for name in ("peft_suite", "peft_models"):
        sys.modules.pop(name, None)


def test_outcomes_are_counted_and_equal_errors_listed_together(suite, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT, "utf-8")
    results = {"custom_models": suite.read_report(report)}
    assert suite.table(results).splitlines()[-2:] == [
        "| test_custom_models.py | 2 | 2 | 1 |",
        "| all | 2 (50.0%) | 2 | 1 |",
    ]
    listed = suite.details(results)
    assert "- test_custom_models.py, 2 failed: ValueError: at 0x…\n  - test_c\n  - test_d" in listed
    assert "- 1 skipped: not for HRA" in listed


@pytest.mark.slow
@pytest.mark.skipif(SOURCES is None, reason="PEFT_SOURCES does not name the folder of PEFT's sources")
@pytest.mark.parametrize("ours", [True, False])
def test_tests_of_peft_run_with_either_classes(suite, tmp_path, ours):
    tests, cache = suite.copy_tests(Path(SOURCES), tmp_path), tmp_path / "hub"
    suite.save_models(cache)
    outcomes = suite.run_file(tests, cache, "encoder_decoder_models", "HRA and test_merge_layers", ours=ours)
    assert (outcomes.passed, outcomes.failures, outcomes.crash) == (2, 0, "")
