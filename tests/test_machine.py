"""The machine card."""

import json
import shutil
import subprocess
import sys

import pytest

from foveate.machine import machine, _cpu_info, _fast_paths, _git_commit, package_versions


def test_the_card_is_json_and_names_what_explains_a_figure():
    card = machine()
    assert json.loads(json.dumps(card)) == card
    assert card["cpu_cores"] >= 1
    assert card["python"] == ".".join(map(str, sys.version_info[:3]))
    assert card["versions"]["torch"].startswith("2.")
    assert {"cpu_model", "memory_gib", "cpu_flags", "os", "git_commit", "load_average_1min", "gpus"} <= set(card)


def test_versions_of_missing_packages_are_left_out():
    assert set(package_versions(("numpy", "no-such-package-as-this"))) == {"numpy"}


def test_flags_are_told_apart(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nmodel name\t: Second\n")
    cpu = _cpu_info(tmp_path / "cpuinfo")
    assert cpu["model name"] == "Some CPU"
    assert _fast_paths(cpu["flags"].split()) == ["avx2", "avx512", "bf16"]
    assert _cpu_info(tmp_path / "missing") == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_no_commit_outside_a_checkout_nor_in_a_foreign_one(tmp_path):
    (tmp_path / "machine.py").write_text("")
    assert _git_commit(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert _git_commit(tmp_path) is None


def test_no_torch_is_loaded_for_it():
    code = "import sys; from foveate.machine import machine; machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
