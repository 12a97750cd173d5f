"""What is shipped: the files of wheel and sdist, the metadata, and a bare environment that runs the wheel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.repo import PACKAGES, ROOT, all_modules, imports, modules

SHIPPED = ("adaptc", "passes", "runtime", "pyproject.toml", "README.md", "LICENSE")
BUILD = """
import sys
from setuptools import build_meta
into, *what = sys.argv[1:]  # read at once: setuptools puts its own arguments there
for name in what:
    print(getattr(build_meta, name)(into))
"""
RUNTIME_NEEDS = ("numpy", "onnxruntime", "tokenizers", "jinja2", "markupsafe")
COMMAND_LINE_NEEDS = (
    *("click", "rich", "markdown_it", "mdurl", "pygments", "yaml"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),
)


def build(source: Path, into: Path, *what: str) -> list[Path]:
    """Call setuptools as pip would, without an isolated environment and so without the network."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(into), *what], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [into / name for name in done.stdout.splitlines() if (into / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel, made from a copy of the working tree."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    (folder / "out").mkdir()
    sdist, wheel = build(source, folder / "out", "build_sdist", "build_wheel")
    return sdist, wheel


def names_in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    read: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return read


def test_every_folder_with_modules_is_a_package(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts): path.parent
        for top in ("adaptc", "passes", "runtime")
        for path in (ROOT / top).rglob("__init__.py")
        if "adaptc/passes" not in str(path) and "adaptc/runtime" not in str(path)
    }
    under_adaptc = {name if name.startswith("adaptc") else f"adaptc.{name}": folder for name, folder in found.items()}
    assert sorted(setuptools["packages"]) == sorted(under_adaptc) == sorted(PACKAGES)
    for name, folder in setuptools["package-dir"].items():
        assert under_adaptc[name] == ROOT / folder


@pytest.mark.parametrize(
    ("extra", "oldest"), [("cpu", "runtime"), ("serve", "runtime"), ("compile", "compile"), ("bench", "compile")]
)
def test_the_oldest_versions_admitted_are_those_tested(project: dict[str, Any], extra: str, oldest: str) -> None:
    """`make oldest` installs tests/oldest/; a lower bound that nobody tries is a guess."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "tests/oldest" / f"{oldest}.txt").read_text(), re.M))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    own = project["project"]["optional-dependencies"][extra]
    admitted = dict(each.split(">=") for each in [*project["project"]["dependencies"], *own])
    assert admitted.keys() <= pinned.keys()
    for name in dict(each.split(">=") for each in own) if oldest == "compile" else admitted:
        assert f"{pinned[name]}.".startswith(f"{admitted[name]}."), f"{name}: {admitted[name]} is admitted"


def shipped() -> dict[str, Path]:
    """Every file of the three folders, by its name in the wheel: modules, and the data beside them."""
    return {
        f"{package.replace('.', '/')}/{file.name}": file
        for package, folder in PACKAGES.items()
        for file in folder.iterdir()
        if file.is_file() and file.suffix != ".pyc"
    }


def test_the_wheel_holds_every_file_once_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = [name for name in names_in_wheel(built[1]) if ".dist-info/" not in name]
    assert sorted(names) == sorted(shipped())
    assert "adaptc/py.typed" in names


def test_the_sdist_holds_each_folder_once(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    of_folders = [name for name in members if name.startswith(("adaptc/", "passes/", "runtime/"))]
    assert sorted(of_folders) == sorted(str(file.relative_to(ROOT)) for file in shipped().values())
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(members)


def test_a_wheel_made_from_the_sdist_is_the_same(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "out").mkdir()
    [source] = [path for path in tmp_path.iterdir() if path.name.startswith("adaptc-")]
    [wheel] = build(source, tmp_path / "out", "build_wheel")
    assert sorted(names_in_wheel(wheel)) == sorted(names_in_wheel(built[1]))


def test_the_wheel_says_what_it_is(built: tuple[Path, Path], project: dict[str, Any]) -> None:
    import adaptc

    text = metadata(built[1])
    assert f"Version: {adaptc.__version__}\n" in text
    assert "Requires-Python: >=3.10\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert "License-File: LICENSE\n" in text
    extras = re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE)
    assert extras == list(project["project"]["optional-dependencies"])
    assert {"bench", "cpu", "eval", "gpu", "tensorrt", "rtx", "serve", "ray", "compile", "dev"} == set(extras)
    with zipfile.ZipFile(built[1]) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(entry).decode() == "[console_scripts]\nadaptc = adaptc.__main__:main\n"


def distribution(text: str) -> str:
    """The name of a requirement, as pip compares names."""
    found = re.match(r"[\w.-]+", text)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def required(project: dict[str, Any], *extras: str) -> set[str]:
    table = project["project"]
    texts = [*table["dependencies"], *(each for extra in extras for each in table["optional-dependencies"][extra])]
    return {distribution(text) for text in texts} - {"adaptc"}


def test_what_is_imported_is_required_and_the_reverse(project: dict[str, Any]) -> None:
    homes = packages_distributions()
    used: dict[str, str] = {}
    for name, file in all_modules().items():
        for found in imports(file):
            top = found.name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "adaptc" and not found.checked_only:
                used |= {distribution(home): f"{name} imports {top}" for home in homes.get(top, [top])}
    part_of_pydantic = {"pydantic-core"}
    # `adaptc bench` runs peers where they are installed, and `adaptc verify` asks llama.cpp, and PEFT about adapters.
    peers = {"onnxruntime-genai", "llama-cpp", "llama-cpp-python", "xllamacpp", "peft"}  # the third imports the second
    # cuda-pathfinder comes with cuda-bindings, in one namespace.
    gpu = required(project, "gpu", "tensorrt", "rtx") | {"cuda-pathfinder"}
    optional = {"opentelemetry", "opentelemetry-api"}  # spans go where whoever starts the server has configured
    optional |= required(project, "ray")  # replicas, for whoever scales out with it
    known = required(project, "bench", "compile", "cpu", "eval", "serve") | part_of_pydantic | peers | gpu | optional
    assert {home: told for home, told in used.items() if home not in known} == {}
    assert required(project, "bench", "compile", "cpu", "eval", "serve") - set(used) == set()


def test_the_runtime_is_in_the_plain_install(project: dict[str, Any]) -> None:
    """`pip install adaptc[cpu]` runs bundles: everything the runtime and the command line import is in it."""
    homes = packages_distributions()
    for package in ("adaptc.runtime", "adaptc.cli"):
        for file in modules(package).values():
            for found in imports(file):
                top = found.name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "adaptc" and not found.checked_only:
                    brought = {distribution(home) for home in homes[top]}
                    optional = (
                        file.name in {"build.py", "evaluate.py", "inspect.py", "measure.py"} and not found.at_once
                    )
                    gpu = bool(brought & required(project, "tensorrt")) and not found.at_once
                    assert optional or gpu or brought & required(project, "cpu"), f"{file.name}: {top}"


def test_ci_pins_everything_it_asks_for(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert (
        required(project, "bench", "compile", "cpu", "eval", "serve", "dev") - {distribution(name) for name in pins}
        == set()
    )
    assert pins["torch"] == "2.13.0"


def bare_site(wheel: Path, into: Path, needs: tuple[str, ...] = RUNTIME_NEEDS) -> Path:
    """A folder with the wheel, links to the packages it needs, and nothing else."""
    into.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    for name in needs:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (into / place.name).symlink_to(place)
        for libraries in place.parent.glob(f"{name}.libs"):
            (into / libraries.name).symlink_to(libraries)
    shutil.copy(ROOT / "tests" / "models" / "history_lm.py", into)
    return into


def run_bare(site: Path, *arguments: str) -> str:
    """Run tests/bare_runtime.py without this environment's packages (-S) and settings (-I)."""
    command = [sys.executable, "-I", "-S", str(ROOT / "tests" / "bare_runtime.py"), str(site), *arguments]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runtime_runs_in_a_bare_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_bare(bare_site(built[1], tmp_path / "site")) == "ran bare\n"


@pytest.mark.model
@pytest.mark.xdist_group("smollm2")
def test_smollm2_runs_in_a_bare_environment(built: tuple[Path, Path], smollm2: Path, tmp_path: Path) -> None:
    assert run_bare(bare_site(built[1], tmp_path / "site"), str(smollm2)) == "ran bare\n"


@pytest.mark.parametrize(
    ("arguments", "needs_more"),
    [
        ("--help", False),
        ("--version", False),
        ("doctor", False),
        ("cache ls", False),
        ("generate no-bundle --prompt x", False),
        ("check model.yaml", True),
        ("compile model.yaml", True),
        ("compile model.yaml --dry-run", True),
        ("show model.yaml", True),
        ("show no-bundle", False),
        ("schema", False),
        ("schema --markdown", False),
        ("gates BUNDLE model.yaml", False),
        ("show BUNDLE", False),
        ("verify BUNDLE", False),
        ("build BUNDLE", False),
        ("generate BUNDLE --prompt x -n 2", False),
        ("serve --help", False),
        ("bench --rate 2 --duration 2 --write-replay load.jsonl", False),
        ("export BUNDLE --to ray", False),
        ("export BUNDLE --to triton", False),
        ("export BUNDLE --to docker", False),
        ("export BUNDLE --to kubernetes", False),
        ("passes", True),
    ],
)
def test_a_plain_install_says_what_is_missing(
    arguments: str, needs_more: bool, built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Without the extra `compile`, a command works or says in one line what to install."""
    site = bare_site(built[1], tmp_path / "site", RUNTIME_NEEDS + COMMAND_LINE_NEEDS)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.yaml").write_text("version: 1\nmodels: {lm: {source: model}}\n")
    shutil.copytree(ROOT / "tests/stored/schema3/gated", tmp_path / "BUNDLE")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from adaptc.__main__ import main; main(prog_name='adaptc')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    if needs_more:
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert "adaptc[compile]" in done.stderr
        assert done.stderr.count("\n") == 1
