"""The wheel holds the two packages, all of them, and nothing else."""

import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest

from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

PACKAGES = {"ckptstore": "ckptstore", "cli/ckptstore_cli": "ckptstore_cli"}  # folder: package


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory):
    """The files in a wheel built from the working tree, without what describes the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("ckptstore-")
    names = set(ZipFile(wheel).namelist())
    return {name for name in names if not name.partition("/")[0].endswith(".dist-info")}


def installed(path):
    """Where a file of the working tree lies once it is installed."""
    for folder, package in PACKAGES.items():
        if path.startswith(f"{folder}/"):
            return package + path.removeprefix(folder)
    raise ValueError(path)


def test_the_wheel_holds_what_git_tracks(wheel_files):
    """Files that git would add count as tracked; deleted ones do not."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {path for path in listed.split("\0") if path and (ROOT / path).exists()}
    assert wheel_files == {installed(path) for path in tracked}


def test_no_pattern_of_gitignore_takes_a_module_away(wheel_files):
    """hatchling leaves out what git ignores, and git would not show it either."""
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {installed(path) for path in modules} <= wheel_files


def test_the_only_top_level_names_are_the_two_packages(wheel_files):
    assert {name.partition("/")[0] for name in wheel_files} == set(PACKAGES.values())
