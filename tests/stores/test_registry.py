"""The registry: what is published is whole, unchanging and found again; what is interrupted was never there."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from raytune_llm.errors import InputError
from raytune_llm.stores.card import Card, card_json, describe, parse_card, table
from raytune_llm.stores.registry import Registry
from raytune_llm.stores.storage import is_local, open_storage

CARD = Card(
    kind="adapter",
    base="org/tiny-base",
    base_revision="abc123",
    base_loading={"dtype": "float32"},
    method="sft",
    metrics={"eval/loss": 0.61, "eval/perplexity": float("inf")},
    intervals={"eval/loss": [0.58, 0.64]},
    config={"tuning": {"steps": 50}},
    data={"train.jsonl": "f00d"},
    seed=7,
    step=50,
    probes=["Is it raining?", [{"role": "user", "content": "Hello"}]],
    code_version="0.1.0",
    parent="a-sweep",
    created="2026-01-02T03:04:05Z",
)


@pytest.fixture(params=["local", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry") if request.param == "local" else f"memory://test-{uuid.uuid4().hex}/r")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


def make_source(folder: Path, *, value: float = 1.0, size: int = 8) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    save_file({"lora_A": np.full(size, value, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_a_published_version_comes_back_equal(registry: Registry, source: Path) -> None:
    version = registry.publish("sarcasm", source, CARD)
    assert (version.name, version.number, version.reference) == ("sarcasm", 1, "sarcasm@1")
    assert version.path == f"{registry.root}/sarcasm/v1"
    assert version.card == CARD
    assert sorted(version.files) == ["adapter_config.json", "adapter_model.safetensors", "tokenizer/tokenizer.json"]
    assert registry.show("sarcasm@1") == version
    assert Registry(registry.root).resolve("sarcasm") == version


def test_a_later_publish_changes_no_earlier_version(registry: Registry, source: Path, tmp_path: Path) -> None:
    first = registry.publish("sarcasm", source, CARD)
    second = registry.publish("sarcasm", make_source(tmp_path / "other", value=2.0), replace(CARD, step=90))
    assert second.number == 2
    assert registry.show("sarcasm@1") == first
    assert first.files["adapter_model.safetensors"] != second.files["adapter_model.safetensors"]


def test_references(registry: Registry, source: Path) -> None:
    versions = [registry.publish("sarcasm", source, CARD) for _ in range(3)]
    assert registry.resolve("sarcasm") == versions[2], "the newest, as long as there is no champion"
    registry.promote(versions[1])
    assert registry.resolve("sarcasm") == versions[1]
    assert registry.resolve("sarcasm@champion") == versions[1]
    assert registry.resolve("sarcasm@3") == registry.resolve("sarcasm@v3") == versions[2]
    assert registry.alias("sarcasm@1", "demo") == registry.resolve("sarcasm@demo") == versions[0]


@pytest.mark.parametrize("selector", ["4", "v0", "production", "", "../v1", "previous", "9" * 5000])
def test_an_unknown_selector_names_versions_and_aliases(registry: Registry, source: Path, selector: str) -> None:
    registry.publish("sarcasm", source, CARD)
    registry.promote(registry.publish("sarcasm", source, CARD))
    with pytest.raises(InputError) as error:
        registry.resolve(f"sarcasm@{selector}")
    assert f"sarcasm@{selector} is not in" in str(error.value)
    assert "sarcasm has versions 1, 2; aliases: champion → 2" in str(error.value)


def test_an_unknown_name_names_near_ones(registry: Registry, source: Path) -> None:
    with pytest.raises(InputError, match="nothing is published"):
        registry.resolve("sarcasm")
    registry.publish("sarcasm", source, CARD)
    registry.publish("weather", source, CARD)
    with pytest.raises(InputError, match=r"sarcsam has no version in .*nearest names: sarcasm$"):
        registry.resolve("sarcsam@champion")
    with pytest.raises(InputError, match="sarcsam has no version"):
        registry.versions("sarcsam")


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "/etc", "ü", "x" * 129])
def test_names_that_are_no_safe_folder_are_refused(registry: Registry, source: Path, name: str) -> None:
    with pytest.raises(InputError, match="registry name="):
        registry.publish(name, source, CARD)
    with pytest.raises(InputError, match="registry name="):
        registry.resolve(f"{name}@1")
    assert registry.list() == []


def test_promote_and_rollback(registry: Registry, source: Path) -> None:
    first, second, third = (registry.publish("sarcasm", source, CARD) for _ in range(3))
    with pytest.raises(InputError, match="sarcasm has no previous champion to roll back to; it has versions 1, 2, 3"):
        registry.rollback("sarcasm")
    assert registry.promote(first).aliases == ("champion",)
    with pytest.raises(InputError, match="no previous"):
        registry.rollback("sarcasm")
    registry.promote(second)
    registry.promote(second)
    assert registry.resolve("sarcasm@previous") == first, "promoting the champion again changes nothing"
    registry.alias("sarcasm@3", "champion")
    assert [version.aliases for version in registry.versions("sarcasm")] == [(), ("previous",), ("champion",)]
    assert registry.rollback("sarcasm") == second
    assert registry.resolve("sarcasm@champion") == second != third
    with pytest.raises(InputError, match="no previous"):
        registry.rollback("sarcasm")


@pytest.mark.parametrize("alias", ["previous", "3", "v3", "a/b", "@x"])
def test_aliases_that_would_mislead_are_refused(registry: Registry, source: Path, alias: str) -> None:
    registry.publish("sarcasm", source, CARD)
    with pytest.raises(InputError, match="alias="):
        registry.alias("sarcasm@1", alias)


def test_only_an_existing_version_is_promoted(registry: Registry, source: Path) -> None:
    version = registry.publish("sarcasm", source, CARD)
    with pytest.raises(InputError, match=r"v9/card.json can't be read"):
        registry.promote(replace(version, number=9))
    assert registry.resolve("sarcasm").aliases == ()


def test_sources_that_may_not_be_published(registry: Registry, source: Path) -> None:
    with pytest.raises(InputError, match=r"card.kind=banana is not allowed; allowed: adapter, model, reward"):
        registry.publish("sarcasm", source, replace(CARD, kind="banana"))
    (source / "card.json").write_text("{}")
    with pytest.raises(InputError, match=r"card.json is in the way"):
        registry.publish("sarcasm", source, CARD)
    (source / "card.json").unlink()
    (source / "training_args.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"training_args.bin: pickle"):
        registry.publish("sarcasm", source, CARD)
    (source / "training_args.bin").unlink()
    save_file({"lora_A": np.array([np.nan], np.float32)}, source / "adapter_model.safetensors")
    with pytest.raises(InputError, match="lora_A holds 1 values that are NaN"):
        registry.publish("sarcasm", source, CARD)
    assert registry.list() == []
    assert open_storage(registry.root).folders("") == [], "nothing was even begun"


def test_a_card_that_is_no_json_publishes_nothing(registry: Registry, source: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        registry.publish("sarcasm", source, replace(CARD, config={"x": object()}))
    assert registry.list() == []
    registry.publish("sarcasm", source, CARD)
    assert len(registry.list()) == 1


def test_damage_is_found(registry: Registry, source: Path) -> None:
    version = registry.publish("sarcasm", source, CARD)
    storage = open_storage(version.path)
    storage.write("adapter_model.safetensors", b"other")
    storage.write("pytorch_model.bin", b"planted")
    storage.remove("tokenizer")
    with pytest.raises(InputError) as error:
        registry.verify(version)
    assert "tokenizer/tokenizer.json is missing" in str(error.value)
    assert "pytorch_model.bin was not published" in str(error.value)
    assert "adapter_model.safetensors has changed" in str(error.value)


def test_a_card_with_a_path_outside_its_folder_is_refused(registry: Registry, source: Path) -> None:
    version = registry.publish("sarcasm", source, CARD)
    storage = open_storage(version.path)
    storage.write("card.json", storage.read("card.json").replace(b"adapter_config.json", b"../../../evil"))
    with pytest.raises(InputError, match=r"'../../../evil' leaves the version's folder"):
        registry.resolve("sarcasm")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {}}', b'{"files": {}, "metrics": 3}'])
def test_an_unreadable_card_says_which(registry: Registry, source: Path, content: bytes) -> None:
    version = registry.publish("sarcasm", source, CARD)
    open_storage(version.path).write("card.json", content)
    with pytest.raises(InputError, match=r"sarcasm/v1/card.json can't be read: .*; use another version"):
        registry.resolve("sarcasm@1")


def test_a_local_copy(registry: Registry, source: Path, tmp_path: Path) -> None:
    version = registry.publish("sarcasm", source, CARD)
    folder = registry.local_copy(version, tmp_path / "cache")
    if is_local(registry.root):
        assert str(folder) == version.path
        return
    published = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == published | {Path("card.json")}
    assert (folder / "adapter_model.safetensors").read_bytes() == (source / "adapter_model.safetensors").read_bytes()
    open_storage(version.path).write("adapter_model.safetensors", b"other")
    assert registry.local_copy(version, tmp_path / "cache") == folder, "not downloaded again"
    with pytest.raises(InputError, match=r"adapter_model.safetensors has changed"):
        registry.local_copy(version, tmp_path / "another")
    assert not [path for path in (tmp_path / "another").rglob("*") if path.is_file()], "nothing half is left"


def test_registries_do_not_share_a_cached_copy(source: Path, tmp_path: Path) -> None:
    one, two = (Registry(f"memory://test-{uuid.uuid4().hex}") for _ in range(2))
    version = one.publish("x", source, CARD)
    other = two.publish("x", make_source(tmp_path / "other", value=3.0), CARD)
    copies = [one.local_copy(version, tmp_path / "cache"), two.local_copy(other, tmp_path / "cache")]
    contents = [(copy / "adapter_model.safetensors").read_bytes() for copy in copies]
    assert contents[0] != contents[1]


def test_tables(registry: Registry, source: Path) -> None:
    registry.promote(registry.publish("sarcasm", source, CARD))
    registry.publish("a-much-longer-name", source, replace(CARD, metrics={}, intervals={}))
    assert table(registry.list()).splitlines() == [
        "version               aliases   kind     base       metric          created",
        "a-much-longer-name@1  -         adapter  tiny-base  -               2026-01-02T03:04:05Z",
        "sarcasm@1             champion  adapter  tiny-base  eval/loss 0.61  2026-01-02T03:04:05Z",
    ]
    text = describe(registry.resolve("sarcasm"))
    for part in (
        "sarcasm@1  adapter  champion",
        "sft, 50 steps, seed 7",
        "eval/loss 0.61 [0.58, 0.64]",
        "train.jsonl f00d",
    ):
        assert part in text
    assert "revision abc123" in text and "from a-sweep" in text and '"steps": 50' in text


# What can go wrong while a version is made ---------------------------------------------------------------------------

PUBLISH_SLOWLY = """
import sys, time
from pathlib import Path
from raytune_llm.stores import storage
from raytune_llm.stores.card import Card
from raytune_llm.stores.registry import Registry

def copy(reader, writer):
    while chunk := reader.read(64):
        writer.write(chunk)
        writer.flush()
        print("copied", flush=True)
        time.sleep(0.05)

storage._copy = copy
card = Card(kind="adapter", base="b", base_revision="", base_loading={}, method="sft", metrics={}, intervals={},
            config={}, data={}, seed=0, step=1, probes=[], code_version="0")
Registry(sys.argv[1]).publish("sarcasm", Path(sys.argv[2]), card)
"""


def test_a_publish_killed_while_copying_was_never_there(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    first = registry.promote(registry.publish("sarcasm", make_source(tmp_path / "source"), CARD))
    big = make_source(tmp_path / "big", size=4000)
    command = [sys.executable, "-c", PUBLISH_SLOWLY, registry.root, str(big)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "copied\n"
        process.send_signal(signal.SIGKILL)
    partial = Path(registry.root, "sarcasm", "v2")
    assert (
        0 < (partial / "adapter_model.safetensors").stat().st_size < (big / "adapter_model.safetensors").stat().st_size
    )
    assert registry.list() == [first] == [registry.resolve("sarcasm")]
    with pytest.raises(InputError, match="sarcasm has versions 1; aliases: champion → 1"):
        registry.resolve("sarcasm@2")
    after = registry.publish("sarcasm", big, CARD)
    assert after.number == 3, "the number of the killed one is not given again"
    registry.verify(after)


def test_an_interrupted_publish_is_undone(registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = registry.publish("sarcasm", source, CARD)
    upload = registry._storage.upload

    def interrupted(path: Path, target: str) -> str:
        if path.name == "tokenizer.json":
            raise KeyboardInterrupt
        return upload(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry._storage, "upload", interrupted)
        registry.publish("sarcasm", source, CARD)
    assert registry.list() == [first]
    assert open_storage(registry.root).files("sarcasm/v2") == []
    assert registry.publish("sarcasm", source, CARD).number == (2 if is_local(registry.root) else 3)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_publishes_nothing_and_says_so(small_disk: Path, tmp_path: Path) -> None:
    registry = Registry(str(small_disk / "registry"))
    first = registry.promote(registry.publish("sarcasm", make_source(tmp_path / "source"), CARD))
    big = make_source(tmp_path / "big", size=100_000)
    with pytest.raises(InputError) as error:
        registry.publish("sarcasm", big, CARD)
    assert "no space left for sarcasm in" in str(error.value)
    assert "nothing was published, earlier versions and aliases are untouched; free some space" in str(error.value)
    assert registry.list() == [first] == [registry.show("sarcasm@champion")]
    second = registry.publish("sarcasm", make_source(tmp_path / "small", size=100), CARD)
    assert registry.show("sarcasm@2") == second, "the failed publish gave its space back"


def test_a_full_disk_leaves_aliases_as_they_were(small_disk: Path, tmp_path: Path) -> None:
    registry = Registry(str(small_disk / "registry"))
    first, second = (registry.publish("sarcasm", make_source(tmp_path / f"{n}"), CARD) for n in "12")
    registry.promote(first)
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * free.f_bavail * free.f_frsize)
    with pytest.raises(OSError, match="No space left"):
        registry.promote(second)
    assert registry.resolve("sarcasm@champion") == first


def _publish_ten(root: str, source: str) -> None:
    for _ in range(10):
        Registry(root).publish("sarcasm", Path(source), CARD)


def _promote_each(root: str, numbers: list[int]) -> None:
    for number in numbers:
        Registry(root).alias(f"sarcasm@{number}", f"seen-{number}")


def test_publishers_and_aliases_in_two_processes_at_once(tmp_path: Path, source: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    context = multiprocessing.get_context("spawn")
    run_both(context.Process(target=_publish_ten, args=(registry.root, str(source))) for _ in range(2))
    versions = registry.versions("sarcasm")
    assert [version.number for version in versions] == list(range(1, 21))
    for version in versions:
        registry.verify(version)
    run_both(
        context.Process(target=_promote_each, args=(registry.root, numbers))
        for numbers in (range(1, 11), range(11, 21))
    )
    assert [version.aliases for version in registry.versions("sarcasm")] == [(f"seen-{n}",) for n in range(1, 21)]


def run_both(processes) -> None:
    started = list(processes)
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def test_publishers_of_an_object_store_get_different_numbers(source: Path) -> None:
    import threading

    registry = Registry(f"memory://test-{uuid.uuid4().hex}")
    numbers: list[int] = []

    def publish() -> None:
        numbers.extend(registry.publish("sarcasm", source, CARD).number for _ in range(5))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers) == len(set(numbers)) == 20
    assert [version.number for version in registry.versions("sarcasm")] == sorted(numbers)


def test_a_card_keeps_its_forecast_and_older_cards_have_none() -> None:
    kept = {"raw": {"training": 3.0}, "actual": {"training": 4.0}}
    text = card_json(replace(CARD, forecast=kept), {})
    assert parse_card(text)[0].forecast == kept
    content = json.loads(text)
    del content["forecast"]
    assert parse_card(json.dumps(content).encode())[0].forecast == {}
