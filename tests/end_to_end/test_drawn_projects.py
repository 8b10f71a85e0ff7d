"""Each drawn project trains a step with a finite loss, or is refused in clear lines."""

import math
import re
import shutil
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
from mtrec_ray.data.stream import StoredRows
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

# No line names the stage's own folder or an earlier run: every draw has a folder to itself.
CLEAR = r"(?!run\.name|leakage audit).*found .*; allowed: .*"

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
    return last["train_loss"] | last["retrieval_loss"]


def outcome(file: Path) -> str:
    """`trained`, or `refused` in clear lines; fails where it is neither."""
    try:
        losses = losses_of(load_project(file), str(file.parent / "runs"))
    except Exception as error:
        problems = problems_of(error)
        if problems is None:
            raise
        for line in problems:
            note(line)
            assert re.fullmatch(CLEAR, line), line
        return "refused"
    assert losses
    assert all(math.isfinite(loss) for loss in losses.values()), losses
    return "trained"


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
    assert outcomes["trained"] >= DRAWS // 5, outcomes
