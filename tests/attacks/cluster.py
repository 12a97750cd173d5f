"""A local cluster of Ray with an exported bundle on it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from adaptc.exports.folder import write_export
from adaptc.exports.options import ExportOptions
from adaptc.exports.ray import ray_export
from adaptc.runtime.bundle.folder import open_bundle
from tests.repo import ROOT

_LABEL = re.compile(r'adaptc:num_requests_running\{replica="([^"]+)"')


class Cluster:
    """The folder of an export, and `serve run` with it.

    Attributes:
        url: Where the entrance is.
        config: What `serve.yaml` holds now.
    """

    def __init__(self, bundle: Path, folder: Path, **options: Any) -> None:
        """Export a bundle, and start two replicas of it.

        Args:
            bundle: Its folder; the model is called `lm`.
            folder: A new folder for the export and the log.
            **options: Of the export.
        """
        # An application of its own name: what we kill is told from other people's replicas by it.
        self.name = f"attack-{os.getpid()}"
        made = ExportOptions(name=self.name, threads=1, **options)
        write_export(folder / "export", ray_export(open_bundle(bundle), made), "ray")
        self._folder, self._file = folder / "export", folder / "export/serve.yaml"
        self.config: dict[str, Any] = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.config["http_options"]["port"] = port
        self.config["proxy_location"] = "HeadOnly"
        self.application["args"]["bundles"] = {"lm": str(bundle.resolve())}
        self.pool["ray_actor_options"] = {"num_cpus": 0.1}  # this machine has fewer cores than a cluster
        self.fix(2)
        self._log = (folder / "ray.log").open("w")
        self._write()
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", "serve.yaml"],
            cwd=self._folder,
            env=self._environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def application(self) -> dict[str, Any]:
        """The one application of the configuration."""
        found: dict[str, Any] = self.config["applications"][0]
        return found

    @property
    def pool(self) -> dict[str, Any]:
        """The deployment of the replicas."""
        found: dict[str, Any] = self.application["deployments"][0]
        return found

    def fix(self, count: int) -> None:
        """Have the configuration say so many replicas, always."""
        self.pool.pop("autoscaling_config", None)
        self.pool["num_replicas"] = count

    def deploy(self) -> None:
        """Have the cluster take the configuration as it is now."""
        self._write()
        log = (self._folder.parent / "ray.log").read_text(encoding="utf-8")
        found = re.search(r"http://[\d.]+:\d+(?=[^\n]*$)", log[log.index("View the dashboard") :], re.MULTILINE)
        assert found is not None
        command = [str(Path(sys.executable).with_name("serve")), "deploy", "serve.yaml", "-a", found[0]]
        subprocess.run(command, cwd=self._folder, env=self._environment(), check=True, capture_output=True, timeout=60)

    def replicas(self) -> set[str]:
        """Names of the replicas that answer."""
        try:
            return set(_LABEL.findall(httpx.get(f"{self.url}/metrics", timeout=10).text))
        except httpx.HTTPError:
            return set()

    def counts(self) -> dict[str, int]:
        """Requests by what became of them, as the entrance counts."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        found = re.findall(r'adaptc:replica_requests_total\{pool="replicas",outcome="(\w+)"\} (\d+)', text)
        return {outcome: int(count) for outcome, count in found}

    def wait(self, condition: Callable[[], bool], seconds: float) -> float:
        """Seconds until something is so.

        Raises:
            TimeoutError: it is not.
        """
        began = time.monotonic()
        while not condition():
            if self._process.poll() is not None or time.monotonic() - began > seconds:
                raise TimeoutError((self._folder.parent / "ray.log").read_text(encoding="utf-8")[-3000:])
            time.sleep(0.25)
        return time.monotonic() - began

    def ready(self) -> bool:
        """Whether the entrance says that it takes requests."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def processes(self) -> list[int]:
        """The processes of our replicas: Ray gives them a title with the application's name."""
        title = f"ray::ServeReplica:{self.name}:replicas".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(title):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return sorted(found)

    def kill_one(self) -> int:
        """Kill a replica as a lack of memory would; its process."""
        victim = self.processes()[0]
        os.kill(victim, signal.SIGKILL)
        return victim

    def close(self) -> None:
        """Have Ray end what it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._log.close()

    def _write(self) -> None:
        self._file.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        path = f"{ROOT}:{self._folder}"
        own = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        return {**os.environ, **own}


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
