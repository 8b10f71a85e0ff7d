"""What the service answers is what the batch jobs write; each refusal has its status and line."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.end_states import user_parts, users_at_end
from mtrec_ray.data.preparing.statistics import WINDOWS_MS
from mtrec_ray.data.snapshot import rows_of_pairs
from mtrec_ray.stages.serving.requests import RecommendRequest, RequestError
from mtrec_ray.stages.trained_model import ensure_vectors, load_with_vectors
from mtrec_ray.training.validation import score_rows
from tests.cluster.serving import check_scores, client_of, engine_of, service_of

pytestmark = pytest.mark.cluster

SCENARIOS = ("shop", "video")


@pytest.fixture(scope="module")
def service(version, tmp_path_factory):
    return service_of(version, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(service):
    with client_of(service) as found:
        yield found


@pytest.fixture(scope="module")
def lists(version):
    """What the batch job's workers write for the first users, by scenario."""
    found = {}
    for name in SCENARIOS:
        ranker = version.scenarios[name].maker.open()
        layout = ranker.ranker.layout
        users = users_at_end(layout, user_parts(layout.prepared, name)[0]).of(0, 12)
        found[name] = ranker.best(users).to_pandas()
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_served_lists_are_those_of_the_batch_job(client, lists, name):
    """Each user's items in their order, with the same scores and predictions; new ones marked."""
    wanted = lists[name]
    for user in wanted["user"].unique():
        rows = wanted[wanted["user"] == user]
        answer = client.post(f"/v1/{name}/recommend", json={"user": user}).json()
        assert [item["item"] for item in answer["items"]] == rows["item"].to_list()
        assert [item["rank"] for item in answer["items"]] == rows["rank"].to_list()
        assert [item["new"] for item in answer["items"]] == rows["new_item"].to_list()
        assert answer["new_user"] == rows["new_user"].iloc[0]
        assert [i["score"] for i in answer["items"]] == pytest.approx(rows["score"], abs=1e-4)
        for task, kind in engine_facts(client, name).items():
            column = rows[f"{'probability' if kind == 'binary' else 'prediction'}.{task}"]
            told = [item["predictions"][task] for item in answer["items"]]
            assert told == pytest.approx(column, abs=1e-4)


def engine_facts(client, name):
    """Kinds of a scenario's tasks, as the service tells them."""
    (version,) = client.get("/v1/models").json()["versions"]
    assert version["state"] == "ready"
    assert version["share"] == 1
    return next(s["tasks"] for s in version["scenarios"] if s["scenario"] == name)


@pytest.mark.parametrize("name", SCENARIOS)
def test_served_scores_are_those_of_an_evaluation(service, client, name):
    """Pairs as rows of a split, scored and blended as `evaluate` does it."""
    check_scores(engine_of(service), client, name)


def cold_predictions(engine, name, number, user):
    """What the model says of an item that had no row, and whose id it does not know."""
    own = engine.scenarios[name]
    layout, items = own.ranker.layout, own.ranker.items
    users = users_at_end(layout, user_parts(layout.prepared, name)[0])
    (place,) = np.flatnonzero(users.ids == user)
    rows = rows_of_pairs(layout, users, items, np.array([place]), np.array([number]))
    rows["labels"] = np.zeros((1, len(own.facts.tasks)), np.float32)
    rows["numeric"][:, layout.columns_of("item", WINDOWS_MS)] = layout.cold_start(WINDOWS_MS)
    trained_model = engine.version.scenarios[name].model
    model, vectors = load_with_vectors(trained_model, ensure_vectors(trained_model))
    model.scenario_inputs(name).catalogue_ids[number] = 0
    ((_, found),) = score_rows(model, vectors, name, iter([rows]))
    return found[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_new_item_is_scored_from_its_columns(service, client, trained, name):
    """As one of the catalogue with the same columns that had no row yet."""
    engine = engine_of(service)
    path = trained.project.path(trained.project.scenarios[name].items.path)
    table = pq.read_table(path).to_pandas()
    ids = engine.scenarios[name].ranker.items.ids
    users = users_at_end(engine.scenarios[name].ranker.layout, "part-00000.parquet").ids[:2]
    for user, number in zip(users, (3, 17), strict=True):
        state = engine.scenarios[name].askers.state.users([str(user)], 0)
        assert number not in state.history  # its id would be unknown there, too
        row = table[table["item_id"] == ids[number]].iloc[0]
        columns = {c: row[c] for c in engine.scenarios[name].new_items.reader.named}
        columns = {c: v.item() if hasattr(v, "item") else v for c, v in columns.items()}
        items = [str(ids[number]), {"item": "brand new", "columns": columns}]
        answer = client.post(f"/v1/{name}/score", json={"user": str(user), "items": items}).json()
        known, new = answer["items"]
        assert (new["item"], new["new"]) == ("brand new", True)
        assert known["item"] == ids[number]
        told = [new["predictions"][task] for task in engine.scenarios[name].facts.tasks]
        wanted = cold_predictions(engine, name, number, user)[: len(told)]
        # Texts are read anew, in the precision of the processor (bf16) and in other chunks.
        np.testing.assert_allclose(told, wanted, rtol=1e-3, atol=5e-4)


def test_mistakes_of_new_items(client):
    """No columns, no text, an unknown column, a value of another type: a line each."""
    for item, line in (
        ("brand new", "items.0.item: found 'brand new', which the catalogue lacks; allowed: "),
        ({"item": "n", "columns": {"title": None}}, "items.0.columns.title: found no text; allow"),
        ({"item": "n", "columns": {"title": "a", "x": 1}}, "items.0.columns.x: found an unknown"),
        ({"item": "n", "columns": {"title": ["a"]}}, "items.0.columns.title: found [\"a\"]; allow"),
    ):  # fmt: skip
        answer = client.post("/v1/shop/score", json={"user": "u", "items": [item]})
        assert answer.status_code == 422
        assert answer.json()["errors"][-1].startswith(line), answer.json()


def test_a_batch_answers_as_one_by_one(service, lists):
    """Requests of two scenarios with other wishes in one call, and each by itself."""
    from mtrec_ray.stages.serving.engine import Job

    engine = engine_of(service)
    users = lists["shop"]["user"].unique()[:3]
    met = lists["shop"]["item"].unique()[:3].tolist()
    asks = [Job("shop", RecommendRequest(user=u, k=k)) for k, u in enumerate(users, 1)]
    asks += [Job("shop", RecommendRequest(user=users[0], k=7, task="buy"))]
    asks += [Job("shop", RecommendRequest(history=met[: n + 1], k=4)) for n in range(3)]
    asks += [Job("video", RecommendRequest(user=users[0])), Job("shop", asks[0].request)]
    asks += [Job("nowhere", asks[0].request)]
    for ask, answer in zip(asks, engine.answer(asks), strict=True):
        (alone,) = engine.answer([ask])
        if isinstance(alone, RequestError):
            assert isinstance(answer, RequestError)
            assert answer.problems == alone.problems
            continue
        assert [i.item for i in answer.items] == [i.item for i in alone.items]
        for one, other in zip(answer.items, alone.items, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.predictions == pytest.approx(other.predictions, abs=1e-4)


def test_an_event_is_seen_by_the_next_request(version, tmp_path):
    """What was taken is recommended no more, and is the latest item of the history."""
    with client_of(service_of(version, tmp_path)) as client:
        before = client.post("/v1/shop/recommend", json={"user": "a new one", "k": 3}).json()
        assert before["new_user"]
        item = before["items"][0]["item"]
        event = {"id": "1", "user": "a new one", "item": item, "labels": {"click": 1}}
        answer = client.post("/v1/shop/events", json={"events": [event]})
        assert (answer.status_code, answer.json()) == (202, {"stored": ["1"]})
        after = client.post("/v1/shop/recommend", json={"user": "a new one", "k": 40}).json()
        found = [one["item"] for one in after["items"]]
        assert item not in found
        assert len(found) == 39
        again = {"user": "a new one", "k": 40, "exclude_seen": False}
        seen = client.post("/v1/shop/recommend", json=again).json()
        assert item in [one["item"] for one in seen["items"]]


def test_a_history_is_a_user_who_did_that(version, tmp_path):
    """A request's history and events of a user who did the same get the same answer."""
    with client_of(service_of(version, tmp_path)) as client:
        end = client.app.state.service  # the app's own
        layout = engine_of(end).scenarios["video"].ranker.layout
        ids = engine_of(end).scenarios["video"].ranker.items.ids[:4].tolist()
        asked = {"history": [{"item": i, "labels": {"like": 1, "rating": 4}} for i in ids]}
        told = client.post("/v1/video/score", json={**asked, "items": ids}).json()
        assert not layout.timed or told["new_user"]
        alone = client.post("/v1/video/score", json={"history": [], "items": ids}).json()
        assert told["items"] != alone["items"]


def test_filters_and_order(client):
    """Items that break a rule are not listed; by a task they fall by its prediction."""
    body = {"user": "nobody", "k": 40, "task": "buy"}
    whole = client.post("/v1/shop/recommend", json=body).json()
    chain = [i["predictions"]["buy"] * i["predictions"]["click"] for i in whole["items"]]
    assert whole["ordered_by"] == "predictions"
    assert [i["score"] for i in whole["items"]] == pytest.approx(chain, abs=1e-5)
    assert chain == sorted(chain, reverse=True)
    rule = {"column": "item_id", "none_of": [i["item"] for i in whole["items"][:5]]}
    kept = client.post("/v1/shop/recommend", json={**body, "filters": [rule]}).json()
    assert [i["item"] for i in kept["items"]] == [i["item"] for i in whole["items"][5:]]


WRONG = [
    ({}, "user: found neither user and history; allowed: one of the two"),
    ({"user": "u", "history": []}, "user: found both user and history; allowed: one of the two"),
    ({"user": "u", "k": 0}, "k: found 0; allowed: input should be greater than or equal to 1"),
    ({"user": "u", "k": 10**30}, "k: found 1000000000000000000000000000000; allowed: at most 200"),
    ({"user": "u", "kk": 1}, "kk: found an unknown key; allowed: the fields of /docs"),
    ({"user": "u", "task": "rate"}, "task: found 'rate'; allowed: click, buy"),
    ({"user": "u", "by": {"click": 0}}, "by: found no weight above 0; allowed: at least one"),
    ({"user": "u", "by": {"click": math.nan}}, "by.click: found NaN; allowed: "),
    ({"user": "u", "by": {"click": 1e400}}, "by.click: found Infinity; allowed: "),
    ({"user": 7}, "user: found 7; allowed: input should be a valid string"),
    ({"history": ["nothing"]}, "history.0.item: found 'nothing'; allowed: an item of"),
    ({"history": [{"item": "shop_00001", "labels": {"click": 3}}]},
     "history.0.labels.click: found 3; allowed: 0 or 1"),
    ({"history": [{"item": "shop_00001", "seconds_ago": -1}]}, "history.0.seconds_ago: found -1"),
    ({"user": "u", "filters": [{"column": "nope", "equals": 1}]},
     "filters.0.column: found no column 'nope' in the catalogue"),
    ({"user": "u", "filters": [{"column": "price"}]}, "filters.0: found none; allowed: one of"),
    ([], "body: found []; allowed: a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "line"), WRONG)
def test_wrong_values_are_told(client, body, line):
    """422, and a line with the field, what was found and what is allowed."""
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/shop/recommend", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422
    assert any(told.startswith(line) for told in answer.json()["errors"]), answer.json()


def test_other_mistakes_have_their_status(version, tmp_path):
    """401, 404, 400, 413, 422 for too many items: each with one line."""
    limits = {"body_bytes": 2000, "items": 2, "history": 3, "events": 1}
    with client_of(service_of(version, tmp_path, limits=limits)) as client:
        for found in ("", "Bearer another", "Basic eDp5"):
            answer = client.get("/v1/models", headers={"Authorization": found})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        asked = {"user": "u"}
        answer = client.post("/v1/nowhere/recommend", json=asked)
        assert answer.status_code == 404
        assert answer.json() == {"errors": ["scenario: found 'nowhere'; allowed: shop, video"]}
        assert client.get("/nowhere").status_code == 404
        assert client.get("/v1/shop/recommend").status_code == 405
        headers = {"Content-Type": "application/json"}
        for text in ("{", "", "[" * 1500):
            answer = client.post("/v1/shop/recommend", content=text, headers=headers)
            assert answer.status_code in (400, 422)
            assert answer.json()["errors"]
        answer = client.post("/v1/shop/recommend", json={"user": "u" * 2000})
        assert answer.status_code == 413
        answer = client.post("/v1/shop/recommend", content=(b" " * 900 for _ in range(4)))
        assert answer.status_code == 413  # told by no header
        answer = client.post("/v1/shop/score", json={**asked, "items": ["a", "b", "c"]})
        assert answer.json() == {"errors": ["items: found 3 of them; allowed: at most 2"]}


def test_events_that_cannot_be_kept(client):
    """An unknown item, an unknown task, a wrong label: 422, and nothing of the request is kept."""
    good = {"id": "a", "user": "kept?", "item": "shop_00001", "labels": {"click": 1}}
    for wrong, line in (
        ({"item": "nothing"}, "events.1.item: found 'nothing'; allowed: an item of the catalogue"),
        ({"labels": {"like": 1}}, "events.1.labels: found 'like'; allowed: tasks, click, buy"),
        ({"labels": {"click": 2}}, "events.1.labels.click: found 2; allowed: 0 or 1"),
        ({"time": 5}, "events.1.time: found 5; allowed: ms since 1970 from"),
    ):
        answer = client.post("/v1/shop/events", json={"events": [good, {**good, **wrong}]})
        assert answer.status_code == 422
        assert answer.json()["errors"][0].startswith(line)
    answer = client.post("/v1/shop/recommend", json={"user": "kept?", "k": 40})
    assert len(answer.json()["items"]) == 40


def test_health_and_metrics(client):
    """Anybody may ask for health; metrics count requests by route, and name no user."""
    assert client.get("/healthz", headers={"Authorization": ""}).status_code == 200
    assert client.get("/readyz", headers={"Authorization": ""}).status_code == 200
    client.post("/v1/shop/recommend", json={"user": "secret one"})
    text = client.get("/metrics").text
    assert 'mtrec_requests_total{replica="0",route="/v1/{scenario}/recommend",status="200"}' in text
    assert "secret one" not in text
    assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
    assert client.get("/docs").status_code == 200
