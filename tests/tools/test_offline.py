"""What a machine without network is given: which packages, and how commands run there."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages():
    spec = importlib.util.spec_from_file_location("offline_packages", ROOT / "tools" / "offline_packages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text",
    [
        "Package    Version\n---------- -------\ntorch      2.11.0\nscikit_learn 1.5\n",
        "torch==2.11.0\nscikit-learn==1.5\n",
        "# a comment\ntorch\nScikit.Learn>=1\n",
        "torch, scikit-learn",
    ],
)
def test_lists_of_packages_are_read_in_every_usual_form(packages, text):
    assert {"torch", "scikit-learn"} <= packages.names_in(text)


def test_what_is_there_needs_nothing_more(packages, monkeypatch):
    asked = {
        "fastpeer": ["torch>=2", "tyro", "tomli; python_version < '3.11'", "timm; extra == 'timm'"],
        "tyro": ["docstring-parser", "typeguard>=4"],
        "torch": ["sympy"],
        "docstring-parser": [], "typeguard": ["typing-extensions"], "typing-extensions": [], "sympy": [],
    }  # fmt: skip
    monkeypatch.setattr(packages.metadata, "requires", lambda name: asked[name])
    found = packages.closure("fastpeer", "3.12", {"torch", "typing-extensions"})
    assert found == ["torch", "tyro", "docstring-parser", "typeguard", "typing-extensions"]


def test_packages_of_another_name_with_the_same_modules_are_one(packages):
    assert packages.names_in("opencv-python  4.10\n") == packages.names_in("opencv-python-headless==4.10\n")


def test_compiled_packages_that_are_lacking_there_are_named(packages, tmp_path, monkeypatch):
    (tmp_path / "installed.txt").write_text(packages.ASSUMED.replace("opencv-python-headless", ""))
    words = ["", str(tmp_path / "site"), "--installed", str(tmp_path / "installed.txt")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(packages, "copy", lambda distribution, target: None)
    with pytest.raises(SystemExit, match="lacks opencv-python-headless"):
        packages.main()


def test_everything_that_is_needed_is_pure_python_or_taken_to_be_there(packages):
    installed = packages.names_in(packages.ASSUMED)
    lacking = [one for one in packages.closure("fastpeer", "3.12", installed) if one not in installed]
    assert "tyro" in lacking
    assert [one for one in lacking if not packages.is_pure(one)] == ["ffcv"]


def test_a_package_is_copied_with_its_metadata_and_nothing_of_this_machine(packages, tmp_path):
    packages.copy(packages.metadata.distribution("tyro"), tmp_path)
    packages.copy_metadata("fastpeer", tmp_path)
    assert (tmp_path / "tyro" / "__init__.py").is_file()
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"METADATA", "entry_points.txt"} <= names
    assert not {"__pycache__", "direct_url.json", "bin"} & names
    code = "import importlib.metadata as m; print(m.version('tyro'), m.version('fastpeer'))"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path = [{str(tmp_path)!r}, *sys.path]; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(found.stdout.split()) == 2


def sh(*words, cwd, **environment):
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def visible_files():
    """Name what lies in the project's root, but for what tests beside this one may put there."""
    return sorted(path.name for path in ROOT.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--colour", "red"], "unknown option --colour"),
        (["--images"], "--images needs a value"),
        (["--images", "nowhere.tar"], "nowhere.tar: no such file"),
        (["--reference", "tests"], "tests: not a checkout of the released code"),
        (["--python", "three"], "--python must be a version such as 3.12, got three"),
        (["--most", "90MB"], "--most must be a number of MiB, got 90MB"),
        (["--out", "docs"], "docs: there already, and no such bundle"),
    ],
)
def test_wrong_words_are_refused_in_one_line_and_nothing_is_written(words, message):
    before = visible_files()
    done = sh("tools/offline_bundle.sh", *words, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"offline_bundle.sh: {message}\n" or done.stderr.startswith(
        f"offline_bundle.sh: {message};"
    )
    assert visible_files() == before


def test_its_help_is_its_head():
    done = sh("tools/offline_bundle.sh", "--help", cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith("Makes one folder, which git ignores")
    assert "--reference  checkout" in done.stdout
    assert "set -eu" not in done.stdout


@pytest.fixture
def tree(tmp_path):
    """A copy of the source with a bundle that brings nothing."""
    for name in ("fastpeer", "kernels", "data_prep"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    bundle = tmp_path / ".offline"
    (bundle / "site").mkdir(parents=True)
    (bundle / "commit").write_text("0123 and changes\n")
    shutil.copy(ROOT / "tools" / "offline_run.sh", bundle / "run.sh")
    return tmp_path


def test_commands_run_in_the_tree_without_installation_and_without_a_home(tree, tmp_path):
    code = (
        "import os, fastpeer.kernels, fastpeer.data_prep as d; print(fastpeer.kernels.__file__, d.__file__,"
        " os.environ['FASTPEER_COMMIT'], os.environ['FASTPEER_BUNDLE'], os.path.isdir(os.environ['HOME']))"
    )
    done = sh("bash", tree / ".offline" / "run.sh", "python3", "-c", code, cwd="/", TMPDIR=str(tmp_path))
    kernels, prep, *rest = done.stdout.split()
    assert Path(kernels) == tree / "kernels" / "__init__.py", done.stderr
    assert Path(prep) == tree / "data_prep" / "__init__.py"
    assert rest == ["0123", "and", "changes", str(tree / ".offline"), "True"]


def test_fastpeer_is_a_command_there(tree):
    done = sh("bash", ".offline/run.sh", "fastpeer", "--version", cwd=tree)
    assert done.stdout.startswith("fastpeer "), done.stderr


def test_a_bundle_that_lies_elsewhere_says_so(tree, tmp_path):
    assert "which command?" in sh("bash", ".offline/run.sh", cwd=tree).stderr
    other = tmp_path / "elsewhere" / ".offline"
    shutil.copytree(tree / ".offline", other)
    done = sh("bash", other / "run.sh", "fastpeer", "recipes", cwd=tree)
    assert done.returncode == 2
    assert "must lie in the tree's root" in done.stderr


@pytest.mark.soak
def test_a_whole_bundle_runs_the_first_stage_in_a_copied_tree(tmp_path):
    """By this Python, which has all packages anyway: whether a bundle lacks one shows on other machines."""
    out = tmp_path / "bundle"
    version = ".".join(map(str, sys.version_info[:2]))
    done = sh("tools/offline_bundle.sh", "--out", out, "--python", version, cwd=ROOT, HOME=os.environ["HOME"])
    assert done.returncode == 0, done.stderr
    tree = tmp_path / "tree"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for file in files:
        if (ROOT / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tree / file)
    shutil.copytree(out, tree / ".offline")
    words = (
        "-m",
        "benchmarks.suite",
        "first",
        "--device",
        "cpu",
        "--out",
        tmp_path / "results",
        "--work",
        tmp_path,
    )
    done = sh("bash", ".offline/run.sh", "python3", *words, cwd=tree, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout.replace("failed: none", "")
