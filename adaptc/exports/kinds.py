"""What a bundle can be exported to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from adaptc.exports.docker import docker_export
from adaptc.exports.kubernetes import kubernetes_export
from adaptc.exports.options import Exported, ExportOptions
from adaptc.exports.ray import ray_export
from adaptc.exports.triton import triton_export
from adaptc.runtime.bundle.folder import Bundle

EXPORTS: Mapping[str, Callable[[Bundle, ExportOptions], Exported]] = MappingProxyType(
    {"ray": ray_export, "triton": triton_export, "docker": docker_export, "kubernetes": kubernetes_export}
)
"""What makes the content of a folder, by what it is for."""
