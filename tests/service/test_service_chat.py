"""Which app answers a chat, by its model and whose key asks; without engines."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from offered_world import BASES, asked, kept_as, offered, publish

from raytune_llm.service.api.chat import PATHS, chat_router
from raytune_llm.service.models import OwnedModels
from raytune_llm.service.records import owner_of, registry_name
from raytune_llm.serving.api.auth import CLIENT_HEADER, AuthMiddleware
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.keys import key_hash

ANN, BOB = key_hash("ann"), key_hash("bob")


class Echoes:
    """Apps that answer with what they were asked."""

    def app_of(self, base):
        async def app(scope, receive, send):
            message = await receive()
            assert not message["more_body"]
            content = {
                "base": base,
                "path": scope["path"],
                "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
                "body": json.loads(message["body"]),
                "keys": sorted(scope),
            }
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(content).encode()})

        return app

    def close(self): ...


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Versions of Ann and Bob, tuned from two offered bases and one that isn't."""
    root = tmp_path_factory.mktemp("world")
    for hashed in (ANN, BOB):
        publish(root, registry_name(owner_of(hashed), "wit", "tiny"), revision="one")
        publish(root, registry_name(owner_of(hashed), "wit", "tiny"), revision="two", champion=True)
    publish(root, registry_name(owner_of(ANN), "lost", "tiny"), revision="three")
    publish(root, registry_name(owner_of(ANN), "judge", "tiny"), revision="one", kind="reward")
    return root


def client_of(root, hashes=(ANN, BOB), headers=None):
    app = FastAPI()
    app.add_middleware(AuthMiddleware, key_hashes=hashes, refuse=ApiError.response)
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    app.include_router(chat_router(OwnedModels(str(root / "registry"), offered(tiny="one", small="two")), Echoes()))
    return TestClient(app, headers=headers or {})


@pytest.fixture(scope="module")
def ann(world):
    return client_of(world, headers={"authorization": "Bearer ann"})


@pytest.fixture(scope="module")
def bob(world):
    return client_of(world, headers={"authorization": "Bearer bob"})


@pytest.mark.parametrize("path", PATHS)
def test_a_base_answers_on_every_path(ann, path):
    got = asked(ann, "tiny", path=path, prompt=[1, "é"])
    assert (got["base"], got["path"], got["body"]) == ("tiny", path, {"model": "tiny", "prompt": [1, "é"]})


def test_a_version_goes_to_the_base_that_it_was_tuned_from(ann):
    name = registry_name(owner_of(ANN), "wit", "tiny")
    for reference, number, base in (("@1", 1, "tiny"), ("@2", 2, "small"), ("@v02", 2, "small"), ("", 2, "small")):
        got = asked(ann, name + reference)
        assert (got["base"], got["body"]["model"]) == (base, f"{name}@{number}")
    assert asked(ann, f"{name}@champion")["body"]["model"] == f"{name}@2"


def test_no_key_and_no_order_is_sent_on_and_the_client_is_named(ann):
    headers = {"x-request-timeout-seconds": "0", CLIENT_HEADER: "bob", "content-type": "application/json"}
    got = ann.post(PATHS[0], content=json.dumps({"model": "tiny"}), headers=headers).json()
    assert got["headers"][CLIENT_HEADER] == ANN and got["headers"]["content-type"] == "application/json"
    assert not {"authorization", "x-request-timeout-seconds"} & set(got["headers"])
    assert "router" not in got["keys"] and "state" not in got["keys"]


def test_of_a_model_named_twice_the_one_that_was_looked_up_is_asked(ann):
    other = f"{registry_name(owner_of(BOB), 'wit', 'tiny')}@1"
    response = ann.post(PATHS[0], content=f'{{"model": "{other}", "model": "tiny"}}')
    assert response.json()["body"] == {"model": "tiny"}


def test_another_owners_model_is_answered_as_one_that_does_not_exist(ann, bob):
    name = registry_name(owner_of(ANN), "wit", "tiny")
    assert asked(ann, f"{name}@1")["base"] == "tiny"
    missing = f"{name.replace('wit', 'wat')}@1"
    for call in (
        lambda model: bob.post(PATHS[0], json={"model": model}),
        lambda model: bob.get(f"/v1/models/{model}"),
        lambda model: bob.delete(f"/v1/models/{model}"),
    ):
        answers = [call(model) for model in (f"{name}@1", missing)]
        assert [answer.status_code for answer in answers] == [404, 404]
        texts = [
            a.json()["error"]["message"].replace(m, "M") for a, m in zip(answers, (f"{name}@1", missing), strict=True)
        ]
        assert texts[0] == texts[1] and "tiny, small" in texts[0]


@pytest.mark.parametrize(
    "model", ["", "@", "../registry", "wit@1", "a/b", "x" * 5000, "\ud800", "tiny@1", "tiny@champion", ".", "-" * 3]
)
def test_what_names_no_model_is_404(ann, model):
    response = ann.post(PATHS[0], content=json.dumps({"model": model}))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert len(error["message"]) < 500


def test_a_version_that_cannot_answer_says_why(ann):
    lost, judge = (registry_name(owner_of(ANN), suffix, "tiny") for suffix in ("lost", "judge"))
    assert "isn't offered here" in refusal(ann, lost) and "gives no answers" in refusal(ann, judge)


def refusal(client, model):
    response = client.post(PATHS[0], json={"model": model})
    assert response.status_code == 404
    return response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("[]", "invalid_type", None),
        ("{}", "missing_required_parameter", "model"),
        ('{"model": 3}', "invalid_type", "model"),
        (b"\xff", "invalid_json", None),
    ],
)
def test_a_body_without_a_model_is_refused(ann, body, code, param):
    response = ann.post(PATHS[0], content=body)
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (code, param)


def test_the_list_has_the_bases_and_what_is_ones_own(ann, bob):
    name = registry_name(owner_of(ANN), "wit", "tiny")
    listed = {model["id"]: model for model in ann.get("/v1/models").json()["data"]}
    assert set(listed) == {"tiny", "small", f"{name}@1", f"{name}@2", f"{name}@champion"}
    assert listed["tiny"] == kept_as("tiny", owned_by="raytune_llm", root="tiny", parent=None, created=0)
    champion = listed[f"{name}@champion"]
    assert champion["created"] > 1.6e9
    assert champion == kept_as(
        f"{name}@champion", owned_by=owner_of(ANN), root=f"{name}@2", parent="small", created=champion["created"]
    )
    assert ann.get(f"/v1/models/{name}@2").json() == listed[f"{name}@2"]
    assert ann.get("/v1/models/tiny").json() == listed["tiny"]
    assert not {id for id in listed if "@" in id} & {model["id"] for model in bob.get("/v1/models").json()["data"]}


def test_a_version_that_is_published_meanwhile_is_asked_at_once(world, bob):
    name = registry_name(owner_of(BOB), "fresh", "tiny")
    assert "does not exist" in refusal(bob, name)
    publish(world, name, revision="one")
    assert asked(bob, name)["body"]["model"] == f"{name}@1"


def test_a_model_is_not_deleted(ann):
    response = ann.delete(f"/v1/models/{registry_name(owner_of(ANN), 'wit', 'tiny')}@1")
    assert response.status_code == 405 and response.headers["allow"] == "GET"
    assert "kept" in response.json()["error"]["message"]


def test_without_keys_all_versions_are_everybodys(world):
    client = client_of(world, hashes=())
    assert asked(client, f"{registry_name(owner_of(BOB), 'wit', 'tiny')}@1")["headers"][CLIENT_HEADER] == ""
    assert len([id for id in client.get("/v1/models").json()["data"] if id["id"].endswith("@1")]) >= 2


def test_an_unread_registry_lists_the_bases(tmp_path):
    assert [model["id"] for model in client_of(tmp_path / "none", hashes=()).get("/v1/models").json()["data"]] == BASES
