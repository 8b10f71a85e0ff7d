"""All mistakes of a project file are reported at once: field, what was found, what is allowed."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.project.base import SECONDS, ProjectError, parse_duration
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.load import parse_project
from tests.builders import project_tree, scenario_tree, two_scenario_project

CLICK = {"click": {"kind": "binary"}}


def tree_of(tasks=CLICK, **fields):
    return project_tree({"shop": scenario_tree(tasks, **fields)})


def problems_of(tree) -> list[str]:
    with pytest.raises(ProjectError) as error:
        parse_project(tree)
    return error.value.problems


def problem_of(tree) -> str:
    (problem,) = problems_of(tree)
    return problem


def test_a_valid_tree_has_no_mistakes():
    """The tree that the tests below break is accepted, with its defaults filled in."""
    project = parse_project(tree_of())
    assert project.scenarios["shop"].weight == 1.0
    assert project.training.alpha == 1.0


def test_all_mistakes_are_reported_at_once():
    """Mistakes in five places, of four kinds, are five lines of one error."""
    tree = tree_of({"click": {"kind": "binray"}}, split={"fractions": [0.8, 0.1, 0.2]})
    tree |= {"training": {"batch_sise": 7, "lr": -1}, "run": {}}
    found = problems_of(tree)
    fields = [
        "run.name", "scenarios.shop.split.fractions", "scenarios.shop.tasks.click.kind",
        "training.batch_sise", "training.lr",
    ]  # fmt: skip
    assert sorted(p.split(":")[0] for p in found) == fields
    assert str(ProjectError(found)) == "\n".join(found)
    assert all("found" in p and "allowed" in p and "\n" not in p for p in found)


@pytest.mark.parametrize(
    ("section", "known"),
    [
        (("training",), "batch_size"),
        (("model", "encoder", "lora"), "rank"),
        (("scenarios", "shop"), "weight"),
        (("scenarios", "shop", "items"), "categorical"),
        (("scenarios", "shop", "tasks", "click"), "kind"),
        (("scenarios", "shop", "negatives"), "per_positive"),
        ((), "sample_world"),
    ],
)
def test_an_unknown_key_names_the_known_ones(section, known):
    """An unknown key is refused in every section, with the keys that the section has."""
    tree = tree_of(negatives={"of": "click"})
    node = tree
    for part in section:
        node = node.setdefault(part, {})
    node["nonsense"] = 1
    found = problem_of(tree)
    assert found.startswith(".".join([*section, "nonsense"]) + ": found an unknown key; allowed: ")
    assert known in found.split("allowed: ")[1].split(", ")


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("items", "categorical"), ("items", "numeric"), ("items", "lists"),
        ("events", "categorical"), ("events", "numeric"),
    ],
)  # fmt: skip
def test_a_list_of_columns_names_each_once(section, field):
    """A column that stands twice in a list is refused in one line."""
    tree = tree_of()
    tree["scenarios"]["shop"][section][field] = ["brand", "price", "brand"]
    found = problem_of(tree)
    assert found.startswith(f"scenarios.shop.{section}.{field}: found ")
    assert found.endswith("'brand' stands twice; allowed: each column once")


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"model": {"encoder": {"pooling": "max"}}}, "model.encoder.pooling", "'mean', 'cls'"),
        ({"model": {"dropout": 1}}, "model.dropout", "found 1; allowed: input should be less"),
        (
            {"model": {"width": 30}},
            "model.width",
            "found 30; allowed: a multiple of attention_heads, 4",
        ),
        ({"training": {"alpha": 1.5}}, "training.alpha", "found 1.5"),
        ({"training": {"epochs": 0}}, "training.epochs", "greater than 0"),
        ({"training": {"lr": "fast"}}, "training.lr", "found 'fast'"),
        ({"run": {"name": "a/b"}}, "run.name", "'a/b'"),
        (
            {"evaluation": {"weights": {"shop": 0}}},
            "evaluation.weights",
            "{'shop': 0.0}; allowed: at least one above 0",
        ),
        (
            {"evaluation": {"weights": {"shoe": 1}}},
            "evaluation.weights",
            "['shoe']; allowed: ['shop']",
        ),
    ],
)
def test_a_bad_value_is_named(fields, where, words):
    """A bad value is one line with the field, the value and the rule."""
    found = problem_of(tree_of() | fields)
    assert found.startswith(where + ": ")
    assert words in found


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"fractions": [0.8, 0.1, 0.2]}, "fractions: found a sum of 1.1; allowed: 1"),
        ({"fractions": [0.8, 0.2]}, "found nothing"),
        ({"fractions": [1.0, 0.0, 0.0]}, "greater than 0"),
        (
            {"time": ["2020-02-01", "2020-01-01"]},
            "time: found a first cut that is not before the second",
        ),
        ({"column": "split", "fractions": [0.8, 0.1, 0.1]}, "allowed: one of column, time"),
        ({}, "found none; allowed: one of column, time, fractions"),
    ],
)
def test_a_bad_split_is_refused(split, words):
    """A split is one of three ways, with fractions that sum to 1 and cuts in order."""
    found = problems_of(tree_of(split=split))
    assert found[0].startswith("scenarios.shop.split")
    assert words in found[0]


def test_good_splits_are_accepted():
    """Fractions that sum to 1 but for rounding, and dates, are accepted."""
    parse_project(tree_of(split={"fractions": [0.7, 0.2, 0.1]}))
    parse_project(tree_of(split={"time": ["2020-01-01", "2020-02-01"]}))


def task(**fields):
    return {"kind": "binary", **fields}


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"a": task(given="a")}, "tasks.a.given: found 'a'; allowed: another of ['a']"),
        ({"a": task(given="b")}, "tasks.a.given: found 'b'; allowed: another of ['a']"),
        ({"a": task(given="b"), "b": task(given="a")}, "a.given: found a cycle, a given b given a"),
        (
            {
                "a": task(given="c"),
                "b": task(given="a"),
                "c": task(given="b"),
                "d": task(given="a"),
            },
            "tasks.a.given: found a cycle, a given c given b given a; allowed: a chain that ends",
        ),
        ({"a": task(kind="regression"), "b": task(given="a")}, "'a' is a regression"),
        (
            {"a": task(space="entire")},
            "space: found entire; allowed: masked, or a binary task with given",
        ),
        (
            {"a": {"kind": "regression", "positive_weight": 3}},
            "tasks.a.positive_weight: found 3 in a regression task; allowed: a binary one",
        ),
        (
            {"a": {"kind": "count", "focal": 2}},
            "tasks.a.focal: found 2 in a count task; allowed: a binary one",
        ),
        ({"a": task(huber=1)}, "tasks.a.huber: found 1 in a binary task; allowed: a regression"),
        ({"a": task(positive_weight=0)}, "positive_weight: found 0; allowed: input should be gr"),
        ({"a": task(label_smoothing=1)}, "label_smoothing: found 1; allowed: input should be less"),
        ({"a": task(focal=-1)}, "focal: found -1; allowed: input should be greater"),
        ({"a": task(weight=0)}, "all task weights are 0"),
        ({"a": task(weight=-1)}, "greater than or equal to 0"),
        ({"1a": task()}, "allowed: a letter"),
        ({}, "at least 1 item"),
    ],
)
def test_bad_tasks_are_refused(tasks, words):
    """A task's parent is another, binary task, and a cycle is one line."""
    found = problems_of(tree_of(tasks))
    assert len([line for line in found if "cycle" in line]) == ("cycle" in words)
    assert all(line.startswith("scenarios.shop") for line in found)
    assert any(words in line for line in found)


def test_a_chain_may_have_any_length():
    """A conditional task may be a parent; a label is known when all labels above it are."""
    tasks = {
        "buy": task(given="cart", space="entire", delay="1d"),
        "cart": task(given="view", delay="3d"),
        "view": task(),
        "back": task(given="buy"),
    }
    shop = parse_project(tree_of(tasks)).scenarios["shop"]
    assert shop.chain("back") == ["back", "buy", "cart", "view"]
    days = {name: shop.label_delay(name) / 86_400 for name in tasks}
    assert days == {"view": 0, "cart": 3, "buy": 3, "back": 3}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"history": {"of": "buy"}}, "history.of: found 'buy'; allowed: another of ['click']"),
        ({"negatives": {"of": "buy"}}, "negatives.of: found 'buy'"),
        ({"history": {"last": 0}}, "history.last: found 0"),
        ({"events": {"path": "e"}, "split": {"time": ["2020-01-01", "2020-02-01"]}}, "events.time"),
        ({"max_unknown_items": 2}, "max_unknown_items: found 2"),
    ],
)
def test_bad_references_are_refused(fields, words):
    """History, negatives and a split by time name what the scenario has."""
    assert words in problem_of(tree_of(**fields))


def test_several_wrong_references_of_a_scenario_are_all_reported():
    """Two wrong names in one scenario are both in the error."""
    found = "\n".join(problems_of(tree_of(history={"of": "buy"}, negatives={"of": "love"})))
    assert "history.of: found 'buy'" in found
    assert "negatives.of: found 'love'" in found


def test_a_wrong_field_hides_no_mistake_between_others():
    """Mistakes between fields are reported beside wrong fields of the same and inner sections."""
    tree = tree_of(
        {"click": {"kind": "binray"}, "buy": {"kind": "binary", "given": "clik"}},
        split={"fractions": [0.8, 0.1, 0.2], "colum": "x"}, weight=0,
        history={"of": "love", "last": 0},
    )  # fmt: skip
    tree |= {"model": {"width": 30, "dropout": 2}, "evaluation": {"weights": {"shoe": 1}}}
    tree |= {"search": {"trials": 0, "choose": "preference", "training.lr": {"uniform": [1, 1]}}}
    assert sorted(line.split(": ")[0] for line in problems_of(tree)) == [
        "evaluation.weights", "model.dropout", "model.width", "scenarios",
        "scenarios.shop.history.last", "scenarios.shop.history.of",
        "scenarios.shop.split.colum", "scenarios.shop.split.fractions",
        "scenarios.shop.tasks.buy.given", "scenarios.shop.tasks.click.kind",
        "search.fields.training.lr.uniform", "search.preference", "search.trials",
    ]  # fmt: skip


def test_mistakes_of_one_section_are_all_reported():
    """Two mistakes between fields of one section are two lines."""
    found = problems_of(tree_of() | {"model": {"width": 30, "text": False}})
    assert [line.split(":")[0] for line in found] == ["model.width", "model.text"]


@pytest.mark.parametrize(
    "model",
    [
        {"attention_heads": "four", "width": 30},
        {"encoder": {"trainable": "no"}, "text": False},
        {"heads": 7, "width": 30},
    ],
)
def test_a_wrong_field_is_not_taken_for_its_default(model):
    """What rests on a wrong field is not checked with the default in its place."""
    assert len(problems_of(tree_of() | {"model": model})) == 1


def test_a_mistake_of_the_general_fine_tuning_is_one_line():
    """Scenarios that take a wrong value from the section do not repeat its line; their own do."""
    scenarios = {"shop": {"mode": "head"}}
    tree = two_scenarios(finetune={"lr": -1, "scenarios": scenarios})
    assert [line.split(":")[0] for line in problems_of(tree)] == ["finetune.lr"]
    tree = two_scenarios(finetune={"scenarios": {"shop": {"lr": -1}}})
    assert [line.split(":")[0] for line in problems_of(tree)] == ["finetune.scenarios.shop.lr"]


@pytest.mark.parametrize(
    ("where", "old"),
    [(("recommend",), "judged_users"), (("scenarios", "shop", "items"), "statistics")],
)
def test_a_name_of_earlier_files_is_an_unknown_key(where, old):
    """A field that has another name now is refused with the names that there are."""
    tree = tree_of()
    node = tree
    for part in where:
        node = node.setdefault(part, {})
    node[old] = None
    found = problem_of(tree)
    assert found.startswith(f"{'.'.join(where)}.{old}: found an unknown key; allowed: ")
    assert ("ranking_users" in found) or ("statistics_of" in found)


def test_an_unknown_key_of_a_scenario_named_like_a_field():
    """A scenario may be called `items` or `weight`: its keys are still those of a scenario."""
    for name in ("items", "weight"):
        tree = project_tree({name: scenario_tree(CLICK, nonsense=1)})
        assert "max_unknown_items" in problem_of(tree)


def test_all_lambdas_zero_are_refused():
    """A project whose scenarios all have weight 0 has no loss and is refused."""
    assert "all weights are 0" in problem_of(tree_of(weight=0))


def test_negatives_may_be_the_word_none():
    """`negatives: none` is no negatives."""
    assert parse_project(tree_of(negatives="none")).scenarios["shop"].negatives is None


@given(st.integers(0, 10**6), st.sampled_from(sorted(SECONDS)))
def test_durations(number, unit):
    """A number with a unit is that many seconds; a plain number is seconds."""
    wanted = number * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    assert parse_duration(f"{number}{unit}") == wanted
    assert parse_duration(f" {number} {unit} ") == wanted
    assert parse_duration(number) == number


@pytest.mark.parametrize("delay", ["31", "d", "1.5d", "-1d", "3 days", "1y", -1, [1]])
def test_bad_durations_are_refused(delay):
    """Other words and negative durations are a mistake of the field."""
    found = problem_of(tree_of({"a": task(delay=delay)}))
    assert found.startswith("scenarios.shop.tasks.a.delay: ")


def test_a_delay_is_read():
    """`delay: 31d` is 31 days in seconds."""
    assert parse_project(tree_of({"a": task(delay="31d")})).scenarios["shop"].tasks["a"].delay == (
        31 * 86400
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"layout": "pair", "encoder": {"gather": True}}, r"model\.layout: found pair with"),
        (
            {"encoder": {"gather": True, "trainable": "none"}},
            r"model\.encoder\.gather: found true for trainable: none; allowed: false",
        ),
        ({"text": False}, r"model\.text: found false with an encoder that learns"),
    ],
)
def test_options_that_exclude_each_other(model, message):
    """Pairs have no cached item vectors; a frozen encoder has nothing to gather for."""
    with pytest.raises(ProjectError, match=message):
        parse_project(tree_of() | {"model": model})


def test_dump_is_read_back():
    """A project written as plain values is the same project when it is read again."""
    tree = tree_of(negatives={"of": "click", "from": "popularity"}, split={"time": [1, 2]})
    project = parse_project(tree)
    assert project.scenarios["shop"].negatives.source == "popularity"
    assert parse_project(project.dump()) == project


def test_projects_are_frozen():
    """A parsed project cannot be changed in place."""
    with pytest.raises(ValueError, match="frozen"):
        parse_project(tree_of()).run.name = "other"


def test_fingerprint():
    """Equal configuration has an equal fingerprint whatever the order of keys, other values not."""
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint("a", "b") != fingerprint("ab")
    assert len(fingerprint()) == 16


@pytest.mark.parametrize(
    ("model", "gathers", "every"),
    [
        ({}, True, 8),
        ({"encoder": {"every": 3}}, True, 3),
        ({"encoder": {"every": 1}}, False, 1),
        ({"encoder": {"gather": False}}, False, 1),
        ({"encoder": {"gather": False, "every": 4}}, False, 4),
        ({"encoder": {"trainable": "none"}}, False, 1),
        ({"layout": "pair"}, False, 1),
    ],
)
def test_the_encoder_gathers_where_it_can(model, gathers, every):
    """By default gradients are gathered over eight steps, where there are cached item vectors."""
    options = parse_project(tree_of() | {"model": model}).model
    assert (options.gathers, options.encoder_every) == (gathers, every)


def test_fine_tuning_may_have_no_workers():
    """0 is one process, and a run of one worker elsewhere; another number is one line."""
    tree = two_scenario_project().dump()
    tree["finetune"]["num_workers"] = 0
    assert parse_project(tree).single("shop").run.num_workers == 1
    tree["finetune"]["num_workers"] = -1
    with pytest.raises(ProjectError, match=r"num_workers: found -1; allowed: 0 .one process., a"):
        parse_project(tree)


def test_a_shortlist_holds_the_list():
    """A shortlist that is shorter than the lists is one line."""
    tree = two_scenario_project().dump()
    tree["recommend"] |= {"k": 20, "shortlist": 5}
    with pytest.raises(ProjectError) as error:
        parse_project(tree)
    line = "recommend.shortlist: found 5; allowed: at least recommend.k, 20"
    assert error.value.problems == [line]


@pytest.mark.parametrize("found", [0, [0, 2], [2], [1, 2, 3], "two", None, True, 1.5])
def test_workers_are_a_number_or_a_pair(found):
    """Anything else is one line that names the field."""
    tree = two_scenario_project().dump()
    tree["run"]["num_workers"] = found
    with pytest.raises(ProjectError) as error:
        parse_project(tree)
    (line,) = error.value.problems
    assert line.startswith("run.num_workers: found ")
    assert line.endswith("; allowed: a number above 0, or two of them, the least and the most")


# --- fine-tuning and recommending ------------------------------------------------------------


def two_scenarios(**sections):
    """A project file of two scenarios."""
    tasks = {"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click"}}
    names = {name: scenario_tree(tasks) for name in ("shop", "news")}
    return project_tree(names, **sections)


def test_scenarios_own_fine_tuning():
    """What a scenario's own section does not say is as in the general one, lora's fields too."""
    section = {
        "mode": "lora", "lr": 0.1, "lora": {"rank": 3, "shared": False},
        "scenarios": {"shop": {"mode": "head"}, "news": {"lora": {"rank": 5}}},
    }  # fmt: skip
    project = parse_project(two_scenarios(finetune=section))
    shop, news = project.finetune.of("shop"), project.finetune.of("news")
    assert (shop.mode, shop.lr, shop.lora.rank) == ("head", 0.1, 3)
    assert (news.mode, news.lr, news.lora.rank, news.lora.shared) == ("lora", 0.1, 5, False)
    assert parse_project(project.dump()) == project


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"finetune": {"scenarios": {"books": {}}}}, r"finetune\.scenarios: found \['books'\]"),
        ({"finetune": {"scenarios": {"shop": {"mood": 1}}}}, r"finetune\.scenarios\.shop\.mood"),
        ({"finetune": {"mode": "half"}}, r"finetune\.mode: found 'half'"),
        ({"recommend": {"by": {"books": {"buy": 1}}}}, r"recommend\.by: found \['books'\]"),
        ({"recommend": {"by": {"shop": {"like": 1}}}}, r"recommend\.by\.shop: found .*'like'"),
        ({"recommend": {"by": {"shop": {"buy": 0}}}}, r"recommend\.by\.shop: .*one of them above"),
    ],
)
def test_mistakes_of_fine_tuning_and_recommending(sections, line):
    """Each mistake is one line that names the field."""
    with pytest.raises(ProjectError, match=line) as caught:
        parse_project(two_scenarios(**sections))
    assert len(caught.value.problems) == 1


def test_mistakes_come_out_of_another_process_whole():
    """What a worker process raises is pickled: the lines stay lines."""
    error = pickle.loads(pickle.dumps(ProjectError(["a: one", "b: two"])))
    assert error.problems == ["a: one", "b: two"]
    assert str(error) == "a: one\nb: two"
