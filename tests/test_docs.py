"""What the pages say is run: commands, Python, YAML, links, and lists that must be complete.

Every `console` and `python` block of a page runs, in order, in a folder with the examples and a compiled SmolLM2 called
`bundle`. The words after the language say otherwise: `skip: why`, `tiny: why` for what takes long with a real model,
`file: NAME` for what a reader saves, or `fails` for a command that shows an error. A page with a `tiny` block runs once
more as a whole, with a tiny model in all places and few steps of training. A page's text says the same to its readers.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from adaptc.bench.prompt import TEXT
from adaptc.cli import COMMANDS, main
from adaptc.compiler import tuning
from adaptc.passes import PASSES, Pass
from adaptc.runtime.bundle import manifest
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.spec.passes import build_passes
from adaptc.spec.reading import parse_spec
from tests.models import folder
from tests.repo import ROOT, all_modules
from tests.report.manifests import SWEEP

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = {"tests.rooms"}
"""Modules that pages tell contributors to run."""

FENCE = re.compile(r"^```(\w+)?[ ]?(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page."""

    language: str
    note: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(found[1] or "", found[2], found[3], text.count("\n", 0, found.start()) + 1)


def commands(block: Block) -> list[str]:
    return [line.removeprefix("$ ") for line in block.code.splitlines() if line.startswith("$ ")]


def pages(*, with_bundle: bool) -> list[Path]:
    """Pages with code to run, with or without a need for the real model."""

    def needs_bundle(block: Block) -> bool:
        runs = block.language == "python" or any(each.startswith("adaptc ") for each in commands(block))
        return runs and re.search(r"\bbundle\b|smollm2", block.code) is not None

    runnable = [page for page in PAGES if any(b.language in {"python", "console"} for b in blocks(page))]
    return [page for page in runnable if any(map(needs_bundle, blocks(page))) == with_bundle and not only_tiny(page)]


def has_tiny(page: Path) -> bool:
    return any(block.note.startswith("tiny: ") for block in blocks(page))


def only_tiny(page: Path) -> bool:
    """Whether nothing of a page runs but on a tiny model."""
    runs = [block.note for block in blocks(page) if block.language in {"python", "console"}]
    return all(note.startswith(("tiny: ", "skip: ")) for note in runs)


def names(found: list[Path]) -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run a page in, with a compile cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(page: Path, monkeypatch: pytest.MonkeyPatch, *, tiny: bool = False) -> dict[str, Any]:
    """Run the page's blocks; the names its Python leaves behind."""
    scope = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", scope)  # where dataclasses look up their annotations
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.note.startswith("skip: ") or (block.note.startswith("tiny: ") and not tiny):
            continue
        if block.note.startswith("file: "):
            Path(block.note.removeprefix("file: ")).write_text(block.code)
            monkeypatch.syspath_prepend(Path.cwd())
            continue
        known = block.note in {"", "fails"} or block.note.startswith("tiny: ")
        assert known or block.language not in {"python", "console"}, f"{where}: {block.note}"
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), scope.__dict__)
        elif block.language == "console":
            for command in commands(block):
                run_command(in_little(command) if tiny else command, where, fails=block.note == "fails")
    return scope.__dict__


def run_command(command: str, where: str, *, fails: bool) -> None:
    """Run a line as a shell would, if it is adaptc's; check that make knows it, if it is make's."""
    command, _, into = command.partition(" > ")
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), f"{where}: {command}"
    elif (program, arguments[:1]) == ("python", ["-m"]):
        assert arguments[1] in TOOLS, f"{where}: {command}"
    elif program == "adaptc":
        done = CliRunner().invoke(main, arguments)
        if "this processor rounds steps of several tokens otherwise" in done.output:
            return  # no speculation on such a one
        assert (done.exit_code != 0) == fails, f"{where}: {command}\n{done.output}"
        assert not fails or done.output.startswith("Error: ")
        if into:
            Path(into).write_text(done.stdout)
    else:
        assert program == "pip", f"{where}: {command}"


def in_little(command: str) -> str:
    """A command with few steps of training and without a GPU."""
    return re.sub(r"--steps \d+", "--steps 2", command).replace(" --device cuda", "")


@pytest.mark.parametrize("page", names(pages(with_bundle=False)))
def test_code_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, monkeypatch)


@pytest.mark.model
@pytest.mark.xdist_group("smollm2")
@pytest.mark.parametrize("page", names(pages(with_bundle=True)))
def test_code_runs_on_smollm2(
    page: Path, desk: Path, smollm2: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(smollm2, desk / "bundle")
    if (cache := smollm2.parent / "cache").exists():
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))  # what the pages compile is there already
    run(page, monkeypatch)
    if page.name == "quickstart.md":
        assert "Paris" in capfd.readouterr().out


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: a model, texts, a spec with gates, and its bundle."""
    root = tmp_path_factory.mktemp("tiny")
    folder.write(root, max_position_embeddings=2048)
    (root / "models").mkdir()
    (root / "model").rename(root / "models" / "SmolLM2-135M")
    text = " ".join(TEXT.split())
    for name, part in (("my_texts.txt", text), ("held_out.txt", text[:240]), ("my.txt", text[:240])):
        (root / name).write_text(part)
    (root / "question.jsonl").write_text('{"prompt": "What is a lighthouse?"}\n{"turns": ["Why?", "How?"]}\n')
    (root / "letters.jsonl").write_text('{"question": "Which?", "choices": ["one", "two"], "answer": 1}\n')
    (root / "sweep.json").write_text(json.dumps(SWEEP))
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Cuba": "Havana"}
    (root / "worldcapitals.yaml").write_text("".join(f"{land}: [{city}]\n" for land, city in capitals.items()))
    [spec] = [block.code for block in blocks(ROOT / "docs/training.md") if block.language == "yaml"]
    (root / "model.yaml").write_text(f"{spec}target: {{weights: int4, max_tokens: 1024}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        every_gate_pays(patch)
        for command in ("train model.yaml --steps 0", "compile model.yaml -o bundle"):
            done = CliRunner().invoke(main, command.split())
            assert done.exit_code == 0, done.output
    return root


def every_gate_pays(patch: pytest.MonkeyPatch) -> None:
    """In a tiny model no gate would: there is nothing to save."""
    patch.setattr(tuning, "payoff", lambda *_: Payoff(1e-3, 1e-3, 0.5e-3, 2))
    patch.setattr(tuning, "TOKENS", 0)


@pytest.mark.parametrize("page", names([page for page in PAGES if has_tiny(page)]))
def test_code_runs_on_a_tiny_model(page: Path, desk: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_models, desk, dirs_exist_ok=True)
    if page.name == "training.md":  # it makes these itself
        shutil.rmtree("bundle")
        Path("gates.safetensors").unlink()
        shutil.rmtree("cache")
    every_gate_pays(monkeypatch)
    run(page, monkeypatch, tiny=True)


@pytest.mark.model
@pytest.mark.xdist_group("smollm2")
def test_the_graph_can_be_driven_by_hand(smollm2: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/bundle.md's loop over bare ONNX Runtime writes what the runtime writes."""
    from adaptc import runtime

    shutil.copytree(smollm2, desk / "bundle")
    ids = run(ROOT / "docs/bundle.md", monkeypatch)["ids"]
    with runtime.load("bundle") as session:
        assert ids[5:] == list(session.generate(ids[:5], max_new_tokens=len(ids) - 5).ids)


@pytest.mark.parametrize("page", names(PAGES))
def test_specs_in_pages_are_valid(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if page.name == "writing-a-pass.md":
        install_example(tmp_path, monkeypatch)
    for block in blocks(page):
        if block.language == "yaml":
            spec = parse_spec(block.code)
            assert [pass_.name for pass_ in build_passes(spec)] == [entry.name for entry in spec.passes]


def install_example(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make docs/writing-a-pass.md's pass an installed package, with the entry point that the page gives."""
    code, entry = [b.code for b in blocks(ROOT / "docs/writing-a-pass.md") if b.language in {"python", "toml"}][::2]
    assert entry.startswith('[project.entry-points."adaptc.passes"]\n')
    (site / "my_passes.py").write_text(code)
    about = site / "my_passes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-passes\nVersion: 1.0\n")
    point = entry.splitlines()[1].replace('"', "")
    (about / "entry_points.txt").write_text(f"[adaptc.passes]\n{point}\n")
    monkeypatch.syspath_prepend(site)


def test_a_package_of_your_own_brings_a_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_example(tmp_path, monkeypatch)
    done = CliRunner().invoke(main, ["passes", "drop_layers"])
    assert done.exit_code == 0
    assert done.output.startswith("drop_layers\n\nLeave decoder layers out.\n")
    spec = "version: 1\nmodels: {lm: {source: x}}\npasses:\n  - drop_layers: {layers: [20, 21]}\n"
    [pass_] = build_passes(parse_spec(spec))
    assert pass_.name == "drop_layers"
    assert pass_.options() == {"layers": (20, 21)}


def test_the_readme_shows_the_example_as_it_is() -> None:
    [shown] = [block.code for block in blocks(ROOT / "README.md") if block.language == "yaml"]
    example = (ROOT / "examples/smollm2/model.yaml").read_text(encoding="utf-8")
    assert shown == "".join(line for line in example.splitlines(keepends=True) if not line.startswith("#"))


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_explains_itself(name: str) -> None:
    page = (ROOT / "docs/passes.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    assert f"[`{name}`](#{name})" in page
    done = CliRunner().invoke(main, ["passes", name])
    assert done.exit_code == 0
    for part in ("\nBefore:", "\nAfter:", "\nNeeds:", "\nShapes:", "\nOptions:"):
        assert part in done.output
    for field in dataclasses.fields(PASSES[name]):
        assert f"\nAttributes:\n    {field.name}: " in done.output or f"\n    {field.name}: " in done.output


def test_no_page_explains_a_pass_that_is_not_there() -> None:
    page = (ROOT / "docs/passes.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(PASSES)
    assert all(issubclass(kind, Pass) for kind in PASSES.values())


def test_the_bundle_page_names_every_key_of_the_manifest() -> None:
    page = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")
    for kind in vars(manifest).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert re.search(rf"`{field.name}`|\"{field.name}\":", page), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("page", names(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """The anchor that a page's host gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", names(PAGES))
def test_paths_and_commands_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`\n]+)`", text):
        made_up = "NAME" in code or "drop_layers" in code
        if re.match(r"(adaptc|passes|runtime|tests|docs|examples)/[\w./-]*$", code) and not made_up:
            assert (ROOT / code).exists(), code
        if found := re.match(r"adaptc ([a-z][a-z-]*)\b", code):
            assert found[1] in COMMANDS, code


@pytest.mark.parametrize("file", [pytest.param(file, id=name) for name, file in all_modules().items()])
def test_code_refers_to_pages_that_exist(file: Path) -> None:
    for page in re.findall(r"(?<![\w/])docs/[\w/-]+(?:\.\w+)?", file.read_text(encoding="utf-8")):
        assert (ROOT / page).is_file(), page


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in readme
