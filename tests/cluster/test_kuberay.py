"""The manifests of cluster/kuberay, as the Kubernetes server would take them."""

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from raycnn.cli.commands import COMMANDS
from raycnn.config.load import load_job
from raycnn.runtime.device import DEVICE_KINDS
from tests.support.cluster import CLUSTER, locked, read
from tests.support.jobs import ROOT

KUBERAY = CLUSTER / "kuberay"
SCHEMA = json.loads(Path(__file__).with_name("kuberay-1.7.0.json").read_text())
CARDS = {"cpu": None, "cuda": "nvidia.com/gpu", "ascend": "huawei.com/Ascend910"}
DEVICES = {"cpu": "cpu", "cuda": "cuda", "ascend": "npu"}


def check(manifest: dict[str, Any]) -> None:
    """Raises ValidationError, also for a field that the CRD does not have."""
    kind = manifest["kind"]
    Draft202012Validator(SCHEMA | {"$ref": f"#/$defs/{kind}"}).validate(manifest["spec"])


def cluster_of(kind: str) -> Any:
    return read(KUBERAY / f"cluster-{kind}.yaml")["spec"]


def pods(cluster: Any) -> list[Any]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_there_is_a_cluster_and_a_job_for_every_kind_of_device() -> None:
    names = {f"{what}-{kind}.yaml" for what in ("cluster", "job") for kind in CARDS}
    assert {path.name for path in KUBERAY.iterdir()} == names | {"storage.yaml"}
    # Neither Intel's nor Apple's GPUs have been tried on Kubernetes.
    assert set(DEVICES.values()) == set(DEVICE_KINDS) - {"xpu", "mps"}


@pytest.mark.parametrize("path", sorted(KUBERAY.glob("*-*.yaml")), ids=lambda path: path.stem)
def test_a_manifest_has_the_fields_of_its_crd_and_no_others(path: Path) -> None:
    manifest = read(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    check(manifest)
    wrong = copy.deepcopy(manifest)
    cluster = wrong["spec"].get("rayClusterSpec", wrong["spec"])
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(ValidationError, match="imagePolicy"):
        check(wrong)


@pytest.mark.parametrize("kind", CARDS)
def test_a_job_brings_the_cluster_of_its_kind(kind: str) -> None:
    assert read(KUBERAY / f"job-{kind}.yaml")["spec"]["rayClusterSpec"] == cluster_of(kind)


@pytest.mark.parametrize("kind", CARDS)
def test_a_cluster_asks_for_its_token_and_is_closed(kind: str) -> None:
    cluster = cluster_of(kind)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods(cluster):
        (container,) = pod["containers"]
        env = {one["name"]: one["value"] for one in container["env"]}
        assert env["RAY_USAGE_STATS_ENABLED"] == "0" and not any("TOKEN" in name for name in env)
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


@pytest.mark.parametrize("kind", CARDS)
def test_ray_counts_the_cards_that_kubernetes_gives(kind: str) -> None:
    (group,) = cluster_of(kind)["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    asked, allowed = worker["resources"]["requests"], worker["resources"]["limits"]
    assert asked == allowed
    cards = {name: int(count) for name, count in allowed.items() if "/" in name}
    assert cards == ({CARDS[kind]: 1} if CARDS[kind] else {})
    # KubeRay itself tells Ray of nvidia.com/gpu; of other cards the start parameters do, in a
    # string that a shell unquotes to JSON.
    told = group["rayStartParams"].get("resources")
    assert (json.loads(*shlex.split(told)) if told else {}) == (
        {"NPU": cards["huawei.com/Ascend910"]} if kind == "ascend" else {}
    )
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("kind", CARDS)
def test_a_jobs_command_is_a_raycnn_job_that_fits_its_cluster(kind: str) -> None:
    manifest = read(KUBERAY / f"job-{kind}.yaml")["spec"]
    program, verb, file, *changes = shlex.split(manifest["entrypoint"])
    assert program == "raycnn" and verb in COMMANDS
    job = load_job(ROOT / Path(file).relative_to("/opt/raycnn"), changes)
    (group,) = manifest["rayClusterSpec"]["workerGroupSpecs"]
    assert job.workers.count == group["replicas"] and job.workers.device == DEVICES[kind]
    mounts = {
        one["mountPath"]
        for pod in pods(cluster_of(kind))
        for one in pod["containers"][0]["volumeMounts"]
    }
    assert mounts == {"/shared"} and job.storage.path.startswith("/shared/")


@pytest.mark.parametrize("kind", CARDS)
def test_versions_are_those_that_are_locked(kind: str) -> None:
    cluster = cluster_of(kind)
    assert cluster["rayVersion"] == locked("ray")
    images = {pod["containers"][0]["image"] for pod in pods(cluster)}
    assert images == {f"raycnn:{locked('raycnn')}-{kind}"}


def test_what_the_pods_share_is_a_volume_for_all_of_them() -> None:
    claim = read(KUBERAY / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    names = {
        volume["persistentVolumeClaim"]["claimName"]
        for kind in CARDS
        for pod in pods(cluster_of(kind))
        for volume in pod["volumes"]
    }
    assert names == {claim["metadata"]["name"]}
