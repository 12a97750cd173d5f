"""Manifests of Kubernetes around the image of `docker.py`: probes, drain, keys from a Secret, and scaling."""

from __future__ import annotations

import math
from typing import Any

import yaml

from adaptc.exports.docker import PORT, USER, check_for_container, serve_arguments
from adaptc.exports.options import Exported, ExportOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.loading import PREFIX_BYTES

_KEYS = "/etc/adaptc/keys"
_LEAVE_SECONDS = 5  # between the signal and the moment at which the last router knows of it
_SPARE_SECONDS = 10
_BASE_BYTES = 512 << 20  # the process, and what a request takes

_README = """\
# A bundle on Kubernetes

    docker build -t IMAGE FOLDER_OF_EXPORT_TO_DOCKER        # and push it to where the cluster finds it
    kubectl create secret generic SLUG-keys --from-file=keys=FILE       # a key of 16 characters or more a line
    kubectl apply -f deployment.yaml -f service.yaml
    kubectl apply -f autoscaler.yaml        # if the cluster has Prometheus and prometheus-adapter, see the file
    kubectl port-forward service/SLUG 8000:8000

A pod that is told to end is not ready from then on, and finishes what runs. Memory is reckoned from the bundle's
weights, KV cache and prefixes; look at what pods use. Written by `adaptc export --to kubernetes`.
"""

_RULE = """\
# A rule for prometheus-adapter, under `rules.custom` of its values; Prometheus reads /metrics with a key as bearer:
#   - seriesQuery: '{__name__="adaptc:num_requests_inside",pod!=""}'
#     resources: {overrides: {namespace: {resource: namespace}, pod: {resource: pod}}}
#     name: {as: adaptc_num_requests_inside}
#     metricsQuery: 'sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)'
"""


def kubernetes_export(bundle: Bundle, options: ExportOptions) -> Exported:
    """The folder's content.

    Raises:
        RequestError: the bundle runs on a GPU only.
    """
    check_for_container(bundle)
    slug = options.slug
    image = options.image or f"{slug}:latest"
    if any(each.isspace() for each in image):
        raise RequestError(f"--image: {image!r}; a name without spaces is needed")
    return Exported(
        {
            "deployment.yaml": _dump(_deployment(bundle, options, image)),
            "service.yaml": _dump(_service(slug)),
            "autoscaler.yaml": _RULE + _dump(_autoscaler(bundle, options)),
            "README.md": _README.replace("SLUG", slug).replace("IMAGE", image),
        }
    )


def memory_bytes(bundle: Bundle, batch: int) -> int:
    """Memory that a server with a bundle may take: weights, KV cache of every sequence, prefixes and the process.

    Args:
        bundle: An opened bundle.
        batch: Sequences that are decoded together.
    """
    manifest = bundle.manifest
    # A graph's weights are packed into memory of their own beside what was read.
    weights = 2 * sum(manifest.files[name].bytes for name in manifest.weights)
    caches = [graph.decoder for graph in manifest.graphs.values() if graph.decoder is not None]
    tokens = sum(4 * spec.cache_entries() for spec in caches)
    return _BASE_BYTES + weights + batch * tokens + (PREFIX_BYTES if caches else 0)


def _deployment(bundle: Bundle, options: ExportOptions, image: str) -> dict[str, Any]:
    labels = _labels(options.slug)
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 3}
    memory = f"{math.ceil(memory_bytes(bundle, options.batch(bundle)) / (1 << 20))}Mi"
    container = {
        "name": "adaptc",
        "image": image,
        "args": [each.replace("$(", "$$(") for each in serve_arguments(options, _KEYS)],  # else it names a variable
        "ports": [{"name": "http", "containerPort": PORT}],
        # It listens once it has loaded its bundle: for that a start may take five minutes.
        "startupProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5, "failureThreshold": 60},
        "livenessProbe": {**probe, "failureThreshold": 3},
        "readinessProbe": {**probe, "httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 2},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVE_SECONDS)]}}},
        "resources": {"requests": {"cpu": str(options.threads), "memory": memory}, "limits": {"memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "keys", "mountPath": _KEYS.rpartition("/")[0], "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "terminationGracePeriodSeconds": math.ceil(options.drain_seconds) + _LEAVE_SECONDS + _SPARE_SECONDS,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "keys", "secret": {"secretName": f"{options.slug}-keys", "defaultMode": 0o440}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": options.slug, "labels": labels},
        "spec": {
            "replicas": options.min_replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _service(slug: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": slug, "labels": _labels(slug)},
        "spec": {"selector": _labels(slug), "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }


def _autoscaler(bundle: Bundle, options: ExportOptions) -> dict[str, Any]:
    """So many replicas that each has as many requests inside as it decodes together."""
    inside = {
        "type": "Pods",
        "pods": {
            "metric": {"name": "adaptc_num_requests_inside"},
            "target": {"type": "AverageValue", "averageValue": str(options.batch(bundle))},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": options.slug, "labels": _labels(options.slug)},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": options.slug},
            "minReplicas": options.min_replicas,
            "maxReplicas": options.max_replicas,
            "metrics": [inside],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def _labels(slug: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "adaptc", "app.kubernetes.io/instance": slug}


class _Plain(yaml.SafeDumper):
    """Repeats what is there twice: anchors are for machines."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
