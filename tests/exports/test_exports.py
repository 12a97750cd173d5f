"""`adaptc export`: folders that are whole, that replace nothing of others, and whose files hold any name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.exports.docker import serve_arguments
from adaptc.exports.kubernetes import kubernetes_export, memory_bytes
from adaptc.exports.options import ExportOptions
from adaptc.exports.wheel import WHEEL, own_wheel
from adaptc.runtime.bundle.folder import open_bundle
from tests.cli.running import run, run_without_compiler
from tests.models import attention_bundle, views_bundle
from tests.repo import ROOT

KINDS = ("ray", "triton", "docker", "kubernetes")
STITCHED = str(ROOT / "tests/stored/schema4/stitched")
ODD = "a \"b\" \\ $(HOME) ${HOME} `id`\u00e9 # {{x}}: 'c'"
"""A name of a bundle with what YAML, JSON, Dockerfiles and shells take for themselves."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny"
    attention_bundle.write(path)
    return path


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_yaml(path: Path | str) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_written_and_written_again(kind: str, bundle: Path) -> None:
    for _ in range(2):
        done = run("export", str(bundle), "--to", kind)
        assert (done.exit_code, done.stdout) == (0, f"wrote tiny-{kind}; tiny-{kind}/README.md says how to run it\n")
    assert json.loads(Path(f"tiny-{kind}/adaptc-export.json").read_text())["export"] == kind
    assert len(Path(f"tiny-{kind}/README.md").read_text().splitlines()) <= 14
    assert [each.name for each in Path().iterdir()] == [f"tiny-{kind}"]  # nothing is left beside it
    copied = list(Path(f"tiny-{kind}").rglob("manifest.json"))
    assert len(copied) == (kind != "kubernetes")
    for manifest in copied:
        assert open_bundle(manifest.parent).manifest == open_bundle(bundle).manifest


def test_what_is_no_export_is_not_replaced(bundle: Path) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    shutil.copytree(bundle, "bundle")
    Path("file").write_text("x")
    for place in ("mine", "bundle", "file"):
        done = run("export", str(bundle), "--to", "docker", "-o", place)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"Error: {place}: exists and is no export of adaptc; remove it or name another folder\n"
    assert Path("mine/letter.txt").read_text() == "dear"
    Path("empty").mkdir()
    assert run("export", str(bundle), "--to", "docker", "-o", "empty").exit_code == 0


def test_an_export_does_not_replace_the_bundle_that_it_is_made_of(bundle: Path) -> None:
    assert run("export", str(bundle), "--to", "ray", "-o", "out").exit_code == 0
    done = run("export", "out/bundle", "--to", "ray", "-o", "out")
    assert done.exit_code == 1
    assert "out: the bundle is in it; name another folder" in done.stderr
    assert open_bundle("out/bundle").manifest.graphs


def test_a_damaged_bundle_is_not_exported(bundle: Path) -> None:
    shutil.copytree(bundle, "bundle")
    content = bytearray(Path("bundle/graphs/lm.onnx").read_bytes())
    content[-1] ^= 1
    Path("bundle/graphs/lm.onnx").write_bytes(content)
    done = run("export", "bundle", "--to", "ray", "-o", "out")
    assert done.exit_code == 1
    assert "lm.onnx" in done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("nothing --to ray", 1, "nothing: no bundle: cannot read manifest.json"),
        ("BUNDLE --to nomad", 2, "'nomad' is not one of"),
        ("BUNDLE --to triton --pool a=b", 2, "--pool is for ray; leave it out"),
        ("BUNDLE --to docker --min-replicas 2", 2, "--min-replicas is for ray and kubernetes; leave it out"),
        ("BUNDLE --to docker --no-copy", 2, "--copy is for ray and triton; leave it out"),
        ("BUNDLE --to ray --pool all --pool a=large", 1, "--pool a: no route 'large'; this bundle has none"),
        ("STITCHED --to ray --pool all --pool a=huge", 1, "--pool a: no route 'huge'; there are: large, small"),
        ("STITCHED --to ray --pool a=large", 1, "pools: none has all routes; one without a list of routes"),
        ("STITCHED --to ray --pool a=", 2, "'a='; NAME or NAME=ROUTE,ROUTE is right, each name once"),
        ("BUNDLE --to ray --name a/b", 1, "--name: 'a/b'; a name without /, = and @ is needed"),
        ("BUNDLE --to ray --min-replicas 3 --max-replicas 2", 1, "--max-replicas: 2; a whole number from 3"),
        ("BUNDLE --to ray --drain-seconds -1", 1, "--drain-seconds: -1"),
        ("BUNDLE --to ray --target-ttft 1", 1, "--target-ttft: BUNDLE has neither gates nor a router"),
        ("STITCHED --to ray --min-budget 0.2", 1, "min_budget: 0.2; without a target no budget is lowered"),
        ("STITCHED --to triton --target-ttft 1", 2, "--target-ttft is for ray and docker and kubernetes; leave it out"),
        ("MODAL --to ray --max-batch 4", 1, "--max-batch: MODAL answers each input by itself; leave it out"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: str, code: int, said: str, bundle: Path) -> None:
    views_bundle.write(Path("MODAL"))
    places = {"BUNDLE": str(bundle), "STITCHED": STITCHED}
    done = run("export", *(places.get(each, each) for each in shlex.split(arguments)), "-o", "out")
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert said.replace("BUNDLE", str(bundle)) in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_pools_of_routes_come_into_the_configuration() -> None:
    done = run("export", STITCHED, "--to", "ray", "--pool", "all", "--pool", "quick=small,short", "--max-replicas", "3")
    assert done.exit_code == 0, done.stderr
    [application] = read_yaml("stitched-ray/serve.yaml")["applications"]
    assert application["args"]["pools"] == {"all": [], "quick": ["small", "short"]}
    by_name = {each["name"]: each for each in application["deployments"]}
    assert by_name.keys() == {"all", "quick", "entrance"}
    assert by_name["quick"]["autoscaling_config"]["max_replicas"] == 3


def test_what_is_kept_under_load_comes_into_the_configuration() -> None:
    pytest.importorskip("starlette", reason="the extra serve is not installed here")
    from adaptc.runtime.server.scaling.scaling_options import ScalingOptions

    done = run("export", STITCHED, "--to", "ray", "--target-ttft", "2", "--min-budget", "0.2", "--no-copy")
    assert done.exit_code == 0, done.stderr
    [application] = read_yaml("stitched-ray/serve.yaml")["applications"]
    options = ScalingOptions.read(application["args"], Path("stitched-ray").resolve())
    assert (options.target_ttft, options.target_tpot, options.min_budget) == (2, None, 0.2)
    with closing(options.replica("replicas").models) as models:
        model, _ = models.text(None)
        assert model.session._checks.floor(None, None) == 0.2


def test_the_options_of_the_configuration_are_read_as_they_are_meant(bundle: Path) -> None:
    pytest.importorskip("starlette", reason="the extra serve is not installed here")
    from adaptc.runtime.server.scaling.scaling_options import ScalingOptions

    assert run("export", str(bundle), "--to", "ray", "--max-batch", "3", "--no-copy").exit_code == 0
    config = read_yaml("tiny-ray/serve.yaml")
    assert not list(Path("tiny-ray").rglob("manifest.json"))
    [application] = config["applications"]
    options = ScalingOptions.read(application["args"], Path("tiny-ray").resolve())
    assert options.bundles == {"tiny": str(bundle)}
    assert (options.max_batch, options.threads, options.settings().drain_seconds) == (3, 2, 30)
    module, _, name = application["import_path"].partition(":")
    assert f"def {name}(args):" in Path(f"tiny-ray/{module}.py").read_text()


def test_ray_reads_its_configuration(bundle: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="the extra ray is not installed here")
    assert run("export", str(bundle), "--to", "ray", "--name", ODD).exit_code == 0
    [folder] = Path().glob("*-ray")
    config = schema.ServeDeploySchema.model_validate(read_yaml(folder / "serve.yaml"))
    assert config.applications[0].args["bundles"] == {ODD: "bundle"}


@pytest.mark.parametrize("kind", KINDS)
def test_any_name_comes_out_as_it_went_in(kind: str, bundle: Path) -> None:
    done = run("export", str(bundle), "--to", kind, "--name", ODD, "-o", "out")
    assert done.exit_code == 0, done.stderr
    if kind == "ray":
        assert read_yaml("out/serve.yaml")["applications"][0]["args"]["bundles"] == {ODD: "bundle"}
    elif kind == "docker":
        assert dockerfile("out")["CMD"][0] == f"{ODD}=/srv/adaptc/bundle"
    elif kind == "kubernetes":
        [container] = read_yaml("out/deployment.yaml")["spec"]["template"]["spec"]["containers"]
        assert container["args"][0] == f"{ODD.replace('$(', '$$(')}=/srv/adaptc/bundle"  # there $$( is $(
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", read_yaml("out/service.yaml")["metadata"]["name"])


def dockerfile(folder: str) -> dict[str, Any]:
    """Its instructions, lines that go on joined; the last of each word counts."""
    text = re.sub(r"\\\n\s*", " ", (Path(folder) / "Dockerfile").read_text(encoding="utf-8"))
    found = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    read = {word: rest for word, _, rest in found if word not in ("CMD", "ENTRYPOINT")}
    return read | {word: json.loads(rest) for word, _, rest in found if word in ("CMD", "ENTRYPOINT")}


def test_a_container_is_started_with_options_that_there_are(bundle: Path) -> None:
    assert run("export", str(bundle), "--to", "docker", "--max-batch", "2", "--drain-seconds", "7").exit_code == 0
    read = dockerfile("tiny-docker")
    assert read["USER"] == "10001"
    assert read["ENTRYPOINT"] == ["adaptc", "serve"]
    check_arguments(read["CMD"])
    assert read["CMD"][read["CMD"].index("--drain-seconds") + 1] == "7"
    assert "--stop-timeout 17" in Path("tiny-docker/README.md").read_text()
    copied = set(re.findall(r"COPY (?:--\S+ )?(\S+)", Path("tiny-docker/Dockerfile").read_text()))
    assert copied == {"bundle", WHEEL}
    assert {f"!{each}" for each in copied} | {"*"} <= set(Path("tiny-docker/.dockerignore").read_text().splitlines())
    assert all(Path("tiny-docker", each).exists() for each in copied)
    assert "torch" not in Path("tiny-docker/Dockerfile").read_text()


def check_arguments(arguments: list[str]) -> None:
    """They are those of `adaptc serve`: the command itself reads them."""
    command = main.get_command(None, "serve")  # type: ignore[arg-type]
    assert command is not None
    context = command.make_context("serve", list(arguments))
    assert context.params["host"] == "0.0.0.0"
    assert context.params["api_key_file"] is not None
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    assert all(each in shown for each in arguments if each.startswith("--"))


def test_a_pod_has_time_to_drain_and_is_asked_what_a_server_answers(bundle: Path) -> None:
    pytest.importorskip("starlette", reason="the extra serve is not installed here")
    from adaptc.runtime.server.app import ROUTES

    done = run("export", str(bundle), "--to", "kubernetes", "--drain-seconds", "90.5", "--image", "here/it:1")
    assert done.exit_code == 0
    deployment, service = read_yaml("tiny-kubernetes/deployment.yaml"), read_yaml("tiny-kubernetes/service.yaml")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    check_arguments(container["args"])
    assert container["image"] == "here/it:1"
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= 90.5 + before
    assert container["args"][container["args"].index("--drain-seconds") + 1] == "90.5"
    paths = {route.path for route in ROUTES}
    probes = {each: container[f"{each}Probe"]["httpGet"]["path"] for each in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/ready", "liveness": "/health", "readiness": "/ready"}
    assert set(probes.values()) <= paths
    keys = container["args"][container["args"].index("--api-key-file") + 1]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert keys.startswith(f"{mounts['keys']}/")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert int(container["args"][container["args"].index("--port") + 1]) == container["ports"][0]["containerPort"]
    scaler = read_yaml("tiny-kubernetes/autoscaler.yaml")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    text = (ROOT / "runtime/server/app.py").read_text(encoding="utf-8")
    assert f'"{metric.replace("adaptc_", "adaptc:")}"' in text


def test_manifests_are_of_kubernetes_schemas(bundle: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate has the schemas")
    assert run("export", str(bundle), "--to", "kubernetes", "--name", ODD, "-o", "out").exit_code == 0
    for file in ("deployment", "service", "autoscaler"):
        content = read_yaml(f"out/{file}.yaml")
        validate.validate(content, "1.30", strict=True)
        with pytest.raises(validate.ValidationError):
            validate.validate({**content, "nonsense": 1}, "1.30", strict=True)


def test_memory_is_reckoned_from_the_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    [graph] = opened.manifest.graphs.values()
    assert graph.decoder is not None
    cache = sum(2 * 4 * heads * width * graph.decoder.max_tokens for heads, width in graph.decoder.kv)
    assert memory_bytes(opened, 8) - memory_bytes(opened, 1) == 7 * cache
    exported = kubernetes_export(opened, ExportOptions(name="m", max_batch=8))
    said = yaml.safe_load(str(exported.files["deployment.yaml"]))
    limit = said["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Mi")) << 20 >= memory_bytes(opened, 8)


def test_the_wheel_is_this_adaptc(tmp_path: Path) -> None:
    packed = tmp_path / WHEEL
    packed.write_bytes(own_wheel())
    assert packed.read_bytes() == own_wheel()
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        assert archive.read("adaptc/exports/wheel.py") == (ROOT / "adaptc/exports/wheel.py").read_bytes()
        assert archive.read("adaptc/runtime/server/app.py") == (ROOT / "runtime/server/app.py").read_bytes()
        assert "adaptc/passes/base.py" in names
        assert not [name for name in names if "__pycache__" in name]
        about = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        assert "Provides-Extra: serve" in about
        archive.extractall(tmp_path / "site")
    code = "import sys; sys.path[:0] = sys.argv[1:]; import adaptc, adaptc.runtime as r; "
    code += "print(adaptc.__file__, r.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert all(each.startswith(str(tmp_path / "site")) for each in done.stdout.split())


@pytest.mark.parametrize("kind", KINDS)
def test_no_compiler_is_needed(kind: str, bundle: Path) -> None:
    done = run_without_compiler("export", bundle, "--to", kind)
    assert done.returncode == 0, done.stderr


def test_the_image_s_arguments_are_those_of_the_command() -> None:
    options = ExportOptions(name="m", max_batch=4, target_ttft=1.5, target_tpot=0.1, min_budget=0.25)
    arguments = serve_arguments(options, "/keys")
    check_arguments(arguments)
    assert arguments[arguments.index("--target-ttft") + 1] == "1.5"
