"""Arguments that people write and Hydra's grammar refuses or reads otherwise."""

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from raytune_llm.data.reading.sources import expand
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.overrides import hydra_overrides
from raytune_llm.stores.quoting import quote

AS_MEANT = {
    "data.train=hf:org/name:train[:20]": "hf:org/name:train[:20]",
    "data.train=hf:x:train[:10%]": "hf:x:train[:10%]",
    "data.train=~/train.jsonl": "~/train.jsonl",
    "data.train=données.jsonl": "données.jsonl",
    "data.train=/a/b (1).jsonl": "/a/b (1).jsonl",
    "data.train=s3://b/x.jsonl?region=us&x=1": "s3://b/x.jsonl?region=us&x=1",
    "data.train=/x/{a}.jsonl": "/x/{a}.jsonl",
    "data.train=it's.jsonl": "it's.jsonl",
    "data.train=a.jsonl,b.jsonl": ["a.jsonl", "b.jsonl"],
    "data.eval=hf:x:train[:20],~/b.jsonl": ["hf:x:train[:20]", "~/b.jsonl"],
    "data.train=[{path: a.jsonl, weight: 2}, b.jsonl]": [{"path": "a.jsonl", "weight": 2}, "b.jsonl"],
    "data.train='x,y'": "x,y",
    "name=né": "né",
    "tuning.steps=50": 50,
}


@pytest.mark.parametrize("argument", AS_MEANT)
def test_values_arrive_as_they_were_meant(argument):
    [override] = hydra_overrides("train", argument)
    assert OverridesParser.create().parse_override(override).value() == AS_MEANT[argument]


def test_a_file_with_a_comma_in_its_name(tmp_path):
    (tmp_path / "a,b.jsonl").touch()
    [override] = hydra_overrides("train", f"data.train={tmp_path}/a,b.jsonl")
    assert OverridesParser.create().parse_override(override).value() == f"{tmp_path}/a,b.jsonl"


def test_several_versions():
    assert hydra_overrides("serve", "adapter=a@champion,b@3") == ["version='a@champion,b@3'"]
    for value in ("a@champion,b@3", "[a@champion,b@3]", "[a@champion, 'b@3']", "'a@champion,b@3'"):
        assert load("serve", [f"adapter={value}"]).version == "a@champion,b@3"
        assert load("serve", [f"version={value}"]).version == "a@champion,b@3"


@pytest.mark.parametrize("value", ["[]", "[a,3]", "[a,{b: 1}]", "[[a]]"])
def test_a_list_of_what_is_no_version(value):
    expected = "expected registry references, such as adapter=[NAME,OTHER@3] or adapter=NAME,OTHER@3"
    with pytest.raises(InputError, match=re.escape(f"version={value}: {expected}")):
        hydra_overrides("serve", f"adapter={value}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("-m", "-m has no meaning here: a sweep is jobs/sweep.py with sweep.space.KEY=[VALUE,VALUE]"),
        ("--multirun", "--multirun has no meaning here"),
        (
            "tuning.steps=50,100",
            "tuning.steps=50,100: one run takes one value; to try several: jobs/sweep.py "
            "sweep.space.tuning.steps=[50,100]; a text with commas goes in quotes: \"tuning.steps='50,100'\"",
        ),
    ],
)
def test_what_has_no_meaning_here_says_what_has(argument, message):
    with pytest.raises(InputError) as caught:
        hydra_overrides("train", argument)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("argument", ["+a=1", "~data.test"])
def test_other_overrides_stay_as_they_are(argument):
    assert hydra_overrides("train", argument) == [argument]


@pytest.mark.parametrize(
    "argument", ["sweep.space.tuning.steps=[1,2", "tuning.steps={a", "x='unended", "data.train=[é]"]
)
def test_mistakes_in_the_grammar_are_not_hidden(argument):
    with pytest.raises(InputError, match="no list or mapping as Hydra reads it: texts with accents"):
        hydra_overrides("train", argument)


def test_one_key_to_ignore_and_a_template_with_braces():
    assert hydra_overrides("train", "data.ignore=weight") == ["data.ignore=['weight']"]
    assert hydra_overrides("train", "data.ignore=weight, été") == ["data.ignore=['weight','été']"]
    [override] = hydra_overrides("train", "model.chat_template={% if a %}b{% endif %}")
    assert OverridesParser.create().parse_override(override).value() == "{% if a %}b{% endif %}"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_quotes_change_nothing(value):
    override = f"name={quote(value)}"
    if "$" not in value:
        assert OverridesParser.create().parse_override(override).value() == value


@pytest.mark.parametrize("value", ["range(1,3)", "interval(1,3)", "choice(1,3)", "1,3"])
def test_one_run_takes_one_value(value):
    several = value if value == "1,3" else "VALUE,VALUE"
    with pytest.raises(InputError, match=rf"sweep\.space\.tuning\.steps=\[{several}\]"):
        hydra_overrides("train", f"tuning.steps={value}")


def test_a_file_with_brackets_in_its_name(tmp_path):
    file = tmp_path / "records(1).jsonl"
    file.touch()
    argument = f"data.train={file}"
    assert OverridesParser.create().parse_override(hydra_overrides("train", argument)[0]).value() == str(file)


def test_sources_and_columns_of_a_job():
    job = load(
        "train", ["model=demo", "data.train=[{path: a.jsonl, weight: 2}, b.csv]", "data.columns.prompt=question"]
    )
    assert [(source.path.rsplit("/", 1)[-1], source.weight) for source in job.data.sources("train")] == [
        ("a.jsonl", 2.0),
        ("b.csv", 1.0),
    ]
    assert all(source.path.startswith("/") for source in job.data.sources("train"))
    assert job.data.columns == {"prompt": "question"}


NO_VALUES = {
    "data.columns=question": "expected a value for each key below it: data.columns.prompt=question reads the file's "
    "key question as prompt",
    "data.columns=[a]": "expected a value for each key below it: data.columns.prompt=question reads the file's key "
    "question as prompt",
    "data.columns=a,b": "expected a value for each key below it: data.columns.prompt=question reads the file's key "
    "question as prompt",
    "model.from_pretrained=x": "expected a value for each key below it: model.from_pretrained.KEY=VALUE",
    "data.ignore={a: b}": "expected names: data.ignore=[weight,tools], or data.ignore=[] for none",
    "data.ignore=null": "expected names: data.ignore=[weight,tools], or data.ignore=[] for none",
    "data.train=a${x.jsonl": "${ without }: it begins a reference to another key, such as ${home}; a file with ${ in "
    "its name is given by a pattern, with ? in place of the $",
}


@pytest.mark.parametrize("argument", NO_VALUES)
def test_values_of_another_form(argument):
    with pytest.raises(InputError) as caught:
        load("check", ["model=demo", argument])
    assert str(caught.value) == f"{argument}: {NO_VALUES[argument]}"


def test_columns_may_be_given_as_one_mapping():
    assert load("check", ["model=demo", "data.train=a.jsonl", "data.columns={prompt: q}"]).data.columns == {
        "prompt": "q"
    }
    assert load("check", ["model=demo", "data.train=a.jsonl", "data.ignore=3"]).data.ignore == ["3"]


@pytest.mark.parametrize("path", ["dol${x}.jsonl", "'dol${x}.jsonl'", r"dol\${x}.jsonl", "dol ${x}.jsonl"])
def test_a_dollar_in_a_path_is_no_reference(path):
    with pytest.raises(InputError) as caught:
        load("check", ["model=demo", f"data.train={path}"])
    assert str(caught.value) == (
        "data.train: Interpolation key 'x' not found: ${…} stands for the value of another key, or of the environment, "
        "${oc.env:NAME}; a file with ${ in its name is given by a pattern, with ? in place of the $"
    )


def test_the_advice_for_a_dollar_works(tmp_path):
    (tmp_path / "dol${x}.jsonl").write_text("{}")
    [source] = load("check", ["model=demo", f"data.train={tmp_path}/dol?{{x}}.jsonl"]).data.sources("train")
    assert [file.path for file in expand(source)] == [f"{tmp_path}/dol${{x}}.jsonl"]


def test_a_variable_that_is_not_set():
    with pytest.raises(InputError) as caught:
        load("check", ["model=demo", "data.train=${oc.env:NOT_SET}/a.jsonl"])
    assert str(caught.value) == "data.train: Environment variable 'NOT_SET' not found"
