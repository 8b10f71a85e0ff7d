"""Predictions of listed items are blended as those of an evaluation; lists stay the same."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.special import logit

from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.stages.recommend import run_recommend
from tests.cluster.runs import changed, say_nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # three times all lists

WEIGHTS = {"network": 0.5, "popularity": 0.25, "labels.user_count": 0.125}


def lists(project, storage):
    """What is recommended to all users of the shop, by user and item."""
    run_recommend(project, str(storage), say_nothing, ("shop",))
    table = pq.read_table(storage / project.run.name / "recommendations" / "shop").to_pandas()
    return table.set_index(["user", "item"]).sort_index()


def labelled_rows(prepared, task):
    """All rows of the shop that have a label of a task: person, item, split."""
    parts = []
    for split in ("train", "valid", "test"):
        for rows in read_rows(prepared.shard_paths("shop", split), 10_000, 0, 10**9):
            label = rows["labels"][:, task]
            part = {"person": rows["person"], "item": rows["item"], "label": label}
            parts.append(pd.DataFrame(part).assign(split=split)[np.isfinite(label)])
    return pd.concat(parts)


def test_predictions_of_lists_are_blended(trained, tmp_path):
    """By the fitted weights: the network's log odds, the item's popularity, the user's labels."""
    name = trained.project.run.name
    shutil.copytree(trained.folder, tmp_path / name)
    nothing = {"trees": False, "sources": False, "labels": False}
    network = lists(changed(trained.project, opinions=nothing), tmp_path)
    lists(trained.project, tmp_path)
    fitted = tmp_path / name / "opinions" / "shop" / "beside-joint" / "finished.json"
    blend = {"kind": "binary", "weights": WEIGHTS, "constant": -0.25}
    fitted.write_text(json.dumps({"click": blend}))
    shutil.rmtree(tmp_path / name / "recommendations")
    blended = lists(trained.project, tmp_path)
    assert blended.index.equals(network.index)
    pd.testing.assert_series_equal(blended["probability.buy"], network["probability.buy"])
    prepared = load_prepared(str(tmp_path / name / "prepared"))
    rows = labelled_rows(prepared, prepared.scenarios["shop"].tasks.index("click"))
    number = dict(catalogue_numbers(tmp_path / name))
    train = rows[(rows["split"] == "train") & (rows["label"] == 1)].groupby("item").size()
    item = blended.index.get_level_values("item")
    popularity = np.array([train.get(number[i], 0) for i in item], float)
    rest = logit(blended["probability.click"]) + 0.25 - 0.25 * np.log1p(popularity)
    rest -= 0.5 * logit(network["probability.click"])
    counts = np.expm1(rest / 0.125)  # of the user's other labels, the same for all of his items
    of_user = counts.groupby("user")
    np.testing.assert_allclose(of_user.max(), of_user.min(), rtol=2e-2)
    wanted = rows.drop_duplicates(["person", "item"]).groupby("person").size()
    np.testing.assert_allclose(np.sort(of_user.mean())[-5:], np.sort(wanted)[-5:], rtol=2e-2)


def catalogue_numbers(folder):
    """Ids of items with their numbers."""
    ids = pq.read_table(folder / "prepared" / "shop" / "catalogue.parquet").column("item_id")
    return [(item, number) for number, item in enumerate(ids.to_pylist())]
