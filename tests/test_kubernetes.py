"""The files for a class on Kubernetes: all keys exist in the chart, and the two files agree with each other.

The keys were compared with `jupyterhub/values.schema.yaml` of Zero to JupyterHub, which refuses others; `CHART`
has the part used here. Deployment on a cluster is not tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="the lab extra is not installed")

FOLDER = Path(__file__).parents[1] / "binder" / "kubernetes"
CHART: dict[str, Any] = {
    "proxy": {"https": {"enabled": bool, "hosts": list, "letsencrypt": {"contactEmail": str}}},
    "hub": {"concurrentSpawnLimit": int, "config": None},  # None: the chart accepts anything
    "singleuser": {
        "image": {"name": str, "tag": str}, "defaultUrl": str, "startTimeout": int, "extraEnv": None,
        "cpu": {"guarantee": (int, float), "limit": (int, float)},
        "memory": {"guarantee": (int, float, str), "limit": (int, float, str)},
        "storage": {
            "type": str, "capacity": str, "homeMountPath": str, "extraVolumes": list, "extraVolumeMounts": list,
        },
        "lifecycleHooks": {"postStart": None},
    },
    "scheduling": {
        "userScheduler": {"enabled": bool}, "podPriority": {"enabled": bool},
        "userPlaceholder": {"enabled": bool, "replicas": int},
    },
    "prePuller": {"hook": {"enabled": bool}, "continuous": {"enabled": bool}},
    "cull": {"enabled": bool, "timeout": int, "every": int, "maxAge": int},
}  # fmt: skip


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def wrong(values: Any, chart: Any, at: str = "") -> list[str]:
    """Keys that the chart lacks, and values of the wrong type."""
    if chart is None:
        return []
    if not isinstance(chart, dict):
        right = isinstance(values, chart) and isinstance(values, bool) == (chart is bool)
        return [] if right else [f"{at} is {values!r}"]
    if not isinstance(values, dict):
        return [f"{at} is {values!r}"]
    return [w for k, v in values.items() for w in (wrong(v, chart[k], f"{at}.{k}") if k in chart else [f"{at}.{k}"])]


def test_the_charts_schema_has_every_key_and_takes_every_value() -> None:
    assert wrong(load("values.yaml"), CHART) == []
    mistaken = {"singleuser": {"memory": {"guarantee": True}, "extraVolumes": []}, "cull": {"timeout": "1h"}}
    assert wrong(mistaken, CHART) == [
        ".singleuser.memory.guarantee is True", ".singleuser.extraVolumes", ".cull.timeout is '1h'",
    ]  # fmt: skip


def test_students_mount_read_only_what_each_node_is_given() -> None:
    user, pod = load("values.yaml")["singleuser"], load("node-share.yaml")["spec"]["template"]["spec"]
    (fill,), (node,) = pod["initContainers"], pod["volumes"]
    assert fill["image"] == f"{user['image']['name']}:{user['image']['tag']}"
    (volume,), (mount,) = user["storage"]["extraVolumes"], user["storage"]["extraVolumeMounts"]
    assert (volume["name"], mount["readOnly"]) == (mount["name"], True)
    tag = user["image"]["tag"]
    assert volume["hostPath"] == {"path": f"{node['hostPath']['path']}/{tag}", "type": "Directory"}
    (inside,) = fill["volumeMounts"]
    assert f"mv {inside['mountPath']}/filling-{tag} {inside['mountPath']}/{tag}" in fill["command"][-1]
    there = {e["name"]: e["value"] for e in fill["env"]}
    for name in ("TEACHLLAMA_CACHE", "TEACHLLAMA_KERNEL_CACHE"):
        assert there[name].replace(f"{inside['mountPath']}/filling-{tag}", mount["mountPath"]) == user["extraEnv"][name]
    assert user["storage"]["homeMountPath"] != "/home/jovyan"  # the image keeps the package there
    assert user["defaultUrl"].removeprefix("/lab/tree/") in user["lifecycleHooks"]["postStart"]["exec"]["command"][-1]


def test_what_is_to_be_changed_is_marked_and_no_password_is_in_the_files() -> None:
    for path in FOLDER.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "example.org" not in line or "# EDIT" in line
    config = load("values.yaml")["hub"]["config"]
    assert config["JupyterHub"]["authenticator_class"] == "shared-password"
    assert "SharedPasswordAuthenticator" not in config  # without a password nobody can log in


def test_the_commands_of_the_files_exist() -> None:
    from teachllama.cli import COMMANDS

    text = " ".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    for words in ("teachllama fetch", "teachllama warmup", "teachllama lab --copy-only"):
        assert words in text
        assert words.split()[1] in COMMANDS
