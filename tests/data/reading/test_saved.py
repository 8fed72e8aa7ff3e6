"""Folders of datasets' save_to_disk are read in their own order, or say what to name instead."""

import json

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.sources import Source, Unreadable, check_hub_name, expand
from raytune_llm.errors import InputError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(30)]
disable_progress_bars()


def reason(folder) -> str:
    [found] = expand(Source(str(folder)))
    assert isinstance(found, Unreadable)
    return found.reason


def test_its_files_are_read_in_the_order_of_its_state(tmp_path):
    folder = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=3)
    files = expand(Source(str(folder), 2.0))
    assert [file.weight for file in files] == [2.0] * 3
    assert [row for file in files for _, row in read(file.path)] == ROWS
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert [file.path for file in expand(Source(str(folder), 2.0))] == [file.path for file in reversed(files)]


def test_one_of_several_splits_is_to_be_named(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows.select(range(5))).save_to_disk(str(tmp_path / "saved"))
    assert reason(tmp_path / "saved") == (
        f"has the splits 'train', 'test'; name one of them, such as {tmp_path}/saved/train"
    )
    [file] = expand(Source(f"{tmp_path}/saved/test"))
    assert [row for _, row in read(file.path)] == ROWS[:5]


def test_it_is_no_data_set_of_the_hub(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError) as caught:
        check_hub_name(f"hf:{tmp_path}/saved")
    assert str(caught.value) == (
        f"{tmp_path}/saved is a folder of save_to_disk; it is read without hf: {tmp_path}/saved"
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("no JSON", "has a state.json that is no JSON object; save_to_disk it again"),
        ("[]", "has a state.json that is no JSON object; save_to_disk it again"),
        ("{}", "has a state.json that names no data files; save_to_disk it again"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "has a state.json that names no data files; save_to_disk it"),
        ('{"_data_files": [3]}', "has a state.json that names no data files; save_to_disk it again"),
        (
            '{"_indices_data_files": [{"filename": "i.arrow"}]}',
            "has an index over its rows, as old versions of datasets wrote it; load it and save_to_disk it again",
        ),
    ],
)
def test_other_states(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert reason(tmp_path).startswith(message)


def test_a_file_that_is_missing_is_named_when_it_is_read(tmp_path):
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text("{}")
    assert expand(Source(str(tmp_path))) == [Source(f"{tmp_path}/data-0.arrow")]


def test_records_that_are_called_like_its_files(tmp_path):
    (tmp_path / "state.json").write_text('{"prompt": "a", "completion": "b"}')
    assert expand(Source(str(tmp_path))) == [Source(f"{tmp_path}/state.json")]
