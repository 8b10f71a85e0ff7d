"""Each drawn project trains a step with a finite loss, or is refused in clear lines."""

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from jobs.common import problems_of
from mtrec_ray.data.catalogue import TOKENS
from mtrec_ray.data.preparing.inputs import log_fragments, read_items
from mtrec_ray.data.preparing.prepare import item_facts, spec_of, write_catalogues
from mtrec_ray.data.preparing.problems import category_problems, item_problems, scan_problems
from mtrec_ray.data.preparing.scan import scan_fragments, source_of
from mtrec_ray.data.stream import StoredRows
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.evaluation.score_weights import score_problems
from mtrec_ray.progress import no_log
from mtrec_ray.project.base import refuse
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.check import check_problems
from mtrec_ray.stages.prepare import open_prepared, run_prepare
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.train import TrainingRun, train_alone
from tests.end_to_end.drawn_projects import Drawn, drawn_project

pytestmark = [pytest.mark.end_to_end, pytest.mark.long, pytest.mark.timeout(3000)]

DRAWS = 200

# One seed a draw: hypothesis would else spend most draws on variants of some. To make a failing
# draw smaller, let it see each choice, and add its phase of shrinking.
CHOICES = st.randoms(use_true_random=True)


@dataclass(frozen=True)
class RowsHere(StoredRows):
    """Rows of the shards' files, without a Ray Data job that puts them into the object store."""

    def _shard(self, name: str, number: int) -> pa.Table:
        return self.blocks[name][number].read()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> str:
    """An encoder of two layers with a vocabulary of letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = [chr(c) for c in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def written(drawn: Drawn, folder: Path) -> Path:
    """The project file, beside its Parquet files, in a folder that held another project's."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, table in drawn.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / path, row_group_size=150)
    drawn.tree["run"]["cache_folder"] = str(folder / "cache")
    (folder / "project.yaml").write_text(yaml.safe_dump(drawn.tree, allow_unicode=True))
    return folder / "project.yaml"


def read_here(project: Project, storage: str) -> None:
    """Read catalogues and logs as the preparing job does, in this process and without passes."""
    refuse(check_problems(project, storage))
    tables = {name: read_items(project, name) for name in project.scenarios}
    refuse(item_problems(project, tables))
    tokenizer = load_tokenizer(project.model.encoder.source)
    for name, table in tables.items():
        texts = item_texts(table, project.scenarios[name].items)
        tokens = pa.array(tokenise(tokenizer, texts, 8), pa.list_(pa.int32()))
        tables[name] = table.append_column(TOKENS, tokens)
    sources = {name: source_of(project, name, table) for name, table in tables.items()}
    scans = scan_fragments(log_fragments(project), sources)
    refuse(scan_problems(project, scans, expanded=False))
    refuse(category_problems(project, tables, scans))
    write_catalogues(project, tables, scans, storage)
    for name, table in tables.items():
        item_facts(project, name, table)
        spec_of(project, name, scans[name], scans[name].users, table)


def losses_of(project: Project, storage: str) -> dict[str, float]:
    """The losses of one step of training, after the preparing job's own function."""
    refuse(check_problems(project, storage))
    run_prepare(project, storage, no_log)
    run = RunFolder.of(project, storage)
    prepared = open_prepared(project, run)
    refuse(score_problems(project, prepared))
    rows = RowsHere({name: prepared.train_shards(name) for name in prepared.scenarios})
    summary = train_alone(TrainingRun(project, prepared, run.path(), "joint"), rows)
    assert "refused" not in summary, summary
    last = summary["curve"][-1]
    losses: dict[str, float] = last["train_loss"] | last["retrieval_loss"]
    assert losses
    assert all(math.isfinite(loss) for loss in losses.values()), losses
    return losses


def outcome(file: Path, job: Callable[[Project, str], object]) -> str:
    """`accepted` by a job, or `refused` in clear lines; fails where it is neither."""
    try:
        job(load_project(file), str(file.parent / "runs"))
    except Exception as error:
        problems = problems_of(error)
        if problems is None:
            raise
        for line in problems:
            note(line)
            assert re.fullmatch(r".*found .*; allowed: .*", line), line
        return "refused"
    return "accepted"


@pytest.mark.usefixtures("session_ray")
def test_a_drawn_project_trains_or_is_refused(tmp_path, encoder_folder):
    """No drawn project ends in a traceback or without a finite loss; many of them train."""
    outcomes = {"trained": 0, "refused": 0}

    @settings(
        max_examples=DRAWS, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(draw=CHOICES)
    def check(draw: Random) -> None:
        drawn = drawn_project(draw, encoder_folder)
        note(repr(drawn))
        outcomes[outcome(written(drawn, tmp_path / "project"))] += 1

    check()
    assert outcomes["trained"] >= DRAWS // 4, outcomes
