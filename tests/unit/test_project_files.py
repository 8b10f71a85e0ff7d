"""A project file is read as it is written, or refused with the line where it is wrong."""

import pytest
import yaml

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import apply_override, load_project
from tests.builders import project_tree, scenario_tree

TREE = project_tree({"shop": scenario_tree({"click": {"kind": "binary"}})})
TEXT = yaml.safe_dump(TREE, sort_keys=False)


def write(tmp_path, tree):
    file = tmp_path / "project.yaml"
    file.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return file


def load_problems(file, *overrides) -> list[str]:
    with pytest.raises(ProjectError) as error:
        load_project(file, overrides)
    return error.value.problems


def test_overrides_are_read_as_yaml(tmp_path):
    """`--set` changes fields of given and of absent sections, numbers, lists and words."""
    project = load_project(
        write(tmp_path, TREE),
        [
            "training.lr=3e-4", "model.hidden=[7, 5]", "scenarios.shop.weight=2",
            "model.encoder.pooling=cls", "scenarios.shop.tasks.click.delay=2h", "run.name=again",
            "scenarios.shop.tasks.like={kind: binary}", "finetune.scenarios.shop.mode=head",
        ],
    )  # fmt: skip
    shop = project.scenarios["shop"]
    assert project.training.lr == 3e-4
    assert project.model.hidden == (7, 5)
    assert (shop.weight, shop.tasks["click"].delay, list(shop.tasks)) == (
        2,
        7200,
        ["click", "like"],
    )
    assert (project.model.encoder.pooling, project.run.name) == ("cls", "again")
    assert project.finetune.of("shop").mode == "head"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lr", "--set: found 'training.lr'; allowed: section.field=value"),
        ("=3", "--set: found '=3'; allowed: section.field=value"),
        (
            "run.name.first=x",
            "--set run.name.first: found that run.name is a value; allowed: a sec",
        ),
        ("training.lrr=1", "training.lrr: found an unknown key; allowed: accumulation, "),
        ("training.lr=fast", "training.lr: found 'fast'"),
        ("shop.weight=2", "shop: found an unknown key; allowed: data_seed, "),
        ("training.lr=[1", "--set training.lr: found '[1'; allowed: a value in YAML"),
        ("training.lr=2025-02-30", "--set training.lr: found '2025-02-30'; allowed: a value in Y"),
        (
            "scenarios.shopp.weight=2",
            "--set scenarios.shopp.weight: found no scenario 'shopp'; allowed: shop",
        ),
        (
            "scenarios.shop.tasks.clik.weight=2",
            "--set scenarios.shop.tasks.clik.weight: found no task 'clik'; allowed: click",
        ),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, words):
    """A bad `--set` is one line that names it or its field."""
    (found,) = load_problems(write(tmp_path, TREE), override)
    assert found.startswith(words)
    assert "\n" not in found


def test_bad_overrides_and_a_bad_file_are_refused_together(tmp_path):
    """Two bad `--set` and a wrong value of the file are three lines of one error."""
    file = write(tmp_path, TREE | {"training": {"lr": -1}})
    found = load_problems(file, "training.epochs", "scenarios.x.weight=1", "model.width=32")
    assert [line.split(":")[0] for line in found] == [
        "--set", "--set scenarios.x.weight", "training.lr"
    ]  # fmt: skip


def test_override_of_a_tree():
    """An override makes the sections on its way and leaves the others alone."""
    tree = {"a": {"b": 1}}
    assert apply_override(tree, "a.c.d=2") == []
    assert apply_override(tree, "e=null") == []
    assert len(apply_override(tree, "a.b.c=1")) == 1
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1: not YAML"),
        ("a:\n\tb: 1", "line 2: not YAML: found a tab; allowed: spaces"),
        ("a: 1\n b: 2", "line 2: not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2: not YAML"),
        ("a: *b", "line 1: not YAML: found undefined alias 'b'"),
        ("? [a]\n: 1", "line 1: not YAML: found unhashable key"),
        ("a: 2025-02-30", "found a wrong value (day is out of range for month); allowed: YAML"),
        ("- a\n- b", "found list; allowed: a mapping of sections"),
        ("", "found nothing; allowed: a mapping of sections"),
        ("# a comment\n", "found nothing; allowed: a mapping of sections"),
    ],
)
def test_files_that_are_no_mapping(tmp_path, text, words):
    """A file that is no YAML mapping is one line that names the file, and the line of the fault."""
    file = write(tmp_path, text)
    (found,) = load_problems(file)
    assert found.startswith(f"{file}: {words}")
    assert "\n" not in found


def test_a_file_that_is_no_text(tmp_path):
    """Bytes that are no UTF-8 are one line that names the file."""
    file = tmp_path / "project.yaml"
    file.write_bytes(b"root: \xff\xfe")
    assert load_problems(file) == [f"{file}: found bytes that are no UTF-8; allowed: text"]


def test_missing_file(tmp_path):
    """A missing project file is one line that names it."""
    (found,) = load_problems(tmp_path / "none.yaml")
    assert found.startswith(f"--config: found no file {tmp_path / 'none.yaml'}")


@pytest.mark.parametrize("again", ["run: {name: other}\n", '"run": {name: other}\n'])
def test_a_key_that_stands_twice(tmp_path, again):
    """Of two keys of one name YAML keeps the last: refused, with the lines of both."""
    file = write(tmp_path, TEXT + again)
    last = len(TEXT.splitlines()) + 1
    first = next(i for i, line in enumerate(TEXT.splitlines(), 1) if line.startswith("run:"))
    assert load_problems(file) == [
        f"{file}: line {last}: found the key run for a second time (first in line {first}); "
        "allowed: one"
    ]


def test_every_key_that_stands_twice_is_reported(tmp_path):
    """Two scenarios, two tasks and a flow mapping with keys that stand twice: three lines."""
    text = (
        "scenarios:\n  shop:\n    tasks:\n      a: {kind: binary}\n      a: {kind: binary}\n"
        "  shop: {weight: 1}\nrun: {name: a, name: b}\n"
    )
    lines = [line for line in load_problems(write(tmp_path, text)) if "second time" in line]
    assert [line.split(": ")[1] for line in lines] == ["line 6", "line 5", "line 7"]


def test_a_merged_key_may_be_overridden(tmp_path):
    """YAML's merge key is no key that stands twice, and an alias is reported once."""
    text = (
        TEXT + "finetune:\n  lora: &l {rank: 2}\nmodel:\n  encoder:\n    lora: {<<: *l, rank: 3}\n"
    )
    project = load_project(write(tmp_path, text))
    assert (project.finetune.lora.rank, project.model.encoder.lora.rank) == (2, 3)
    twice = write(tmp_path, text.replace("{rank: 2}", "{rank: 2, rank: 4}"))
    assert len(load_problems(twice)) == 1


@pytest.mark.parametrize(
    ("key", "kind"), [("1", "int"), ("on", "bool"), ("2025-01-01", "timestamp")]
)
def test_a_key_that_is_no_text(tmp_path, key, kind):
    """A key that YAML reads as another type is one line that says so."""
    file = write(tmp_path, TEXT + f"finetune:\n  scenarios:\n    {key}: {{}}\n")
    line = len(TEXT.splitlines()) + 3
    assert load_problems(file) == [
        f"{file}: line {line}: found the key {key}, which YAML reads as {kind}; "
        f'allowed: a text, such as "{key}"'
    ]


def test_mistakes_of_yaml_and_of_the_schema_are_reported_together(tmp_path):
    """A key that stands twice hides no wrong value."""
    file = write(tmp_path, TEXT + "training: {lr: -1, epochs: 2, epochs: 3}\n")
    found = load_problems(file)
    assert len(found) == 2
    assert "second time" in found[0]
    assert found[1].startswith("training.lr: found -1")


def test_a_part_that_holds_itself(tmp_path):
    """A YAML alias inside its own mapping ends as a line, not as an endless walk."""
    file = write(tmp_path, TEXT + "model: &m {encoder: *m}\n")
    assert load_problems(file) == [f"{file}: found mappings without end; allowed: sections"]


def test_an_empty_file_section_is_a_mistake(tmp_path):
    """A file without its required sections names each of them."""
    found = load_problems(write(tmp_path, {"model": {}}))
    assert sorted(p.split(":")[0] for p in found) == ["run", "scenarios"]


def test_a_section_without_a_value(tmp_path):
    """`training:` with nothing below it is one line."""
    (found,) = load_problems(write(tmp_path, TREE | {"training": None}))
    assert found == "training: found null; allowed: a mapping"


@pytest.mark.parametrize(
    ("root", "path", "wanted"),
    [
        (None, "a/b.parquet", "{folder}/a/b.parquet"),
        ("data", "b.parquet", "{folder}/data/b.parquet"),
        ("..", "b.parquet", "{parent}/b.parquet"),
        ("/data", "b.parquet", "/data/b.parquet"),
        ("s3://bucket/x/", "b.parquet", "s3://bucket/x/b.parquet"),
        ("s3://bucket/x?region=eu", "b.parquet", "s3://bucket/x/b.parquet?region=eu"),
        ("data?", "b.parquet", "{folder}/data?/b.parquet"),
        ("data", "/else/b.parquet", "/else/b.parquet"),
        ("data", "gs://bucket/b.parquet", "gs://bucket/b.parquet"),
    ],
)
def test_paths_start_at_the_files_folder(tmp_path, root, path, wanted):
    """Relative paths start at the project file's folder; absolute ones and URIs stay."""
    tree = TREE | ({} if root is None else {"root": root})
    project = load_project(write(tmp_path, tree))
    assert project.path(path) == wanted.format(folder=tmp_path, parent=tmp_path.parent)
