"""The application as it is built, without a cluster to run it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from rediprune.runtime.errors import RedipruneError

from ....support.command_line import CommandLine

pytest.importorskip("ray")
from rediprune.runtime.serving.cluster.ray_app import Arguments
from rediprune.runtime.serving.cluster.ray_settings import Scale
from rediprune.runtime.serving.ray import app


def deployments(**arguments: object) -> dict[str, object]:
    """Deployments of the application by name."""
    found: dict[str, object] = {}

    def look(bound: object) -> None:
        deployment = bound._bound_deployment  # type: ignore[attr-defined]
        found[deployment.name] = deployment
        for given in deployment.init_args:
            if hasattr(given, "_bound_deployment"):
                look(given)

    look(app(Arguments.model_validate(arguments)))
    return found


def test_what_is_asked_for_becomes_deployments(bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("llava")
    found = deployments(bundles=f"a={bundle},{bundle}", replicas="2", max_replicas="5", cpus="0.5", max_batch="6")
    assert set(found) == {"Front", "Engine", "Board"}
    engine, front = found["Engine"], found["Front"]
    scaling = engine._deployment_config.autoscaling_config  # type: ignore[attr-defined]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)
    router = engine._deployment_config.request_router_config  # type: ignore[attr-defined]
    assert str(router.request_router_class).endswith("PictureRouter")
    assert router.request_router_kwargs["batch"] == 6
    spread = front.init_args[0]  # type: ignore[attr-defined]
    assert list(spread.bundles) == ["a", "llava"] and spread.settings.max_batch == 6
    assert set(deployments(bundles=str(bundle), split="3")) == {"Front", "Engine", "Language", "Board"}


def test_bundles_may_come_from_the_environment(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RedipruneError, match="bundles="):
        deployments()
    monkeypatch.setenv("REDIPRUNE_BUNDLES", str(bundle_of("llava")))
    monkeypatch.setenv("REDIPRUNE_API_KEY", "secret")
    spread = deployments()["Front"].init_args[0]  # type: ignore[attr-defined]
    assert spread.settings.api_key == "secret"


def test_wrong_settings_are_refused(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValidationError, match="replica"):
        Arguments.model_validate({"replica": 3})
    with pytest.raises(RedipruneError, match="keep"):
        deployments(bundles=str(bundle_of("llava")), keep=7.5)
    for wrong in ({"replicas": 3, "max_replicas": 2}, {"cpus": 0.0}, {"patience": -1.0}):
        with pytest.raises(RedipruneError):
            Scale(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_served_on_ray_leaves_with_2(rediprune: CommandLine, bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("llava")
    for arguments, words in (
        ((bundle, "--ray", "--decoder", "http://127.0.0.1:9/v1"), "do not go together"),
        ((bundle / "none", "--ray"), "is not a bundle"),
        ((bundle, "--fallback"), "--decoder"),
        ((bundle, "--decoder", "127.0.0.1:9"), "ends in /v1"),
        ((bundle, f"b={bundle}", "--decoder", "http://127.0.0.1:9/v1"), "one bundle"),
    ):
        assert words in rediprune("serve", *arguments, code=2).stderr.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.process
def test_a_cluster_that_is_not_there_is_told(rediprune_process: CommandLine, bundle_of: Callable[[str], Path]) -> None:
    done = rediprune_process("serve", bundle_of("llava"), "--ray", "--ray-address", "127.0.0.1:1", code=2)
    assert "no Ray cluster" in done.stderr
