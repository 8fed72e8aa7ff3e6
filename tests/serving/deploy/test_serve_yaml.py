"""The file for `serve deploy`: whole, without secrets, and good for the same application."""

import dataclasses

import pytest
import yaml
from serving_world import make_base, publish, write_adapter
from test_serve_config import serve

from raytune_llm.errors import InputError
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.deploy import serve_yaml
from raytune_llm.stores.registry import Registry


@pytest.fixture
def registry(tmp_path):
    base = make_base(tmp_path / "tiny")
    registry = Registry(str(tmp_path / "registry"))
    publish(registry, base, "wit", write_adapter(base, tmp_path / "wit", seed=1))
    return registry


def written(registry, tmp_path, monkeypatch, **changed):
    monkeypatch.setenv("SOME_KEYS", "a-secret")
    chosen = serve(host="0.0.0.0", api_key_env="SOME_KEYS", config_file=str(tmp_path / "endpoint.yaml"), **changed)
    return serve_yaml.write(chosen, registry.root, ["wit"])


def test_the_file_holds_versions_and_hashes_and_no_key(registry, tmp_path, monkeypatch):
    file = written(registry, tmp_path, monkeypatch)
    content = yaml.safe_load(file.read_text())
    (application,) = content["applications"]
    assert content["http_options"] == {"host": "0.0.0.0", "port": 8000, "request_timeout_s": 25.0}
    assert application["import_path"] == "raytune_llm.serving:application"
    assert application["args"]["serve"]["engine"]["type"] == "local"
    assert application["args"]["key_hashes"] == [key_hash("a-secret")]
    assert application["deployments"] == [{"name": "endpoint", "user_config": {"versions": ["wit@1"]}}]
    assert "a-secret" not in file.read_text()


def test_serves_own_schema_takes_the_file(registry, tmp_path, monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(written(registry, tmp_path, monkeypatch).read_text()))
    assert schema.applications[0].name == "raytune_llm"


def test_the_application_is_built_from_the_args_alone(registry, tmp_path, monkeypatch):
    import ray
    from ray._common.utils import import_attr

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    file = written(registry, tmp_path, monkeypatch, max_replicas=4, target_open_answers=3)
    monkeypatch.delenv("SOME_KEYS")
    arguments = yaml.safe_load(file.read_text())["applications"][0]["args"]
    built = import_attr("raytune_llm.serving:application")(arguments)
    deployment = built._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 3)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, scaling.look_back_period_s) == (30.0, 600.0, 30.0)
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 60.0
    plan, coordinator = deployment.init_args
    assert coordinator._bound_deployment.name == "coordinator"
    assert [version.reference for version in plan.catalog.versions] == ["wit@1"]
    assert plan.key_hashes == (key_hash("a-secret"),)
    assert plan.engine == serve().engine


def test_classes_of_others_are_refused(registry, tmp_path, monkeypatch):
    arguments = yaml.safe_load(written(registry, tmp_path, monkeypatch).read_text())["applications"][0]["args"]
    arguments["serve"]["engine"]["type"] = "os.system"
    with pytest.raises(InputError, match=r"serve\.engine\.type=os\.system is not allowed; allowed: local, vllm"):
        serve_yaml.application(arguments)
    assert dataclasses.is_dataclass(serve())
