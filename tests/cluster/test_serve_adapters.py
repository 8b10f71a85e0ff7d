"""A fine-tuned scenario and one that only the general head scores are served as evaluated."""

import json
import shutil

import pytest

from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.serving.versions import open_version
from tests.cluster.runs import say_nothing
from tests.cluster.serving import check_scores, client_of, engine_of, service_of
from tests.cluster.test_new_scenario import with_news

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture(scope="module")
def service(trained, tmp_path_factory):
    """Shop by its fine-tuned model, video by the joint one, news by the general head."""
    storage = tmp_path_factory.mktemp("adapted")
    shutil.copytree(trained.folder, storage / trained.project.run.name)
    project = with_news(trained.project)
    run_finetune(project, str(storage), say_nothing, Options(("shop",)))
    decision = storage / project.run.name / "scenarios" / "shop" / "finished.json"
    decision.write_text(json.dumps(json.loads(decision.read_text()) | {"chosen": "finetuned"}))
    few = with_news(trained.project, least_labels=10**9)
    run_finetune(few, str(storage), say_nothing, Options(("news",)))
    version = open_version(few, str(storage), say_nothing)
    return service_of(version, tmp_path_factory.mktemp("store"))


def test_kinds_of_models(service):
    """Each scenario's own model answers."""
    kinds = {one.scenario: one.model for one in engine_of(service).facts()}
    assert kinds == {"shop": "finetuned", "video": "joint", "news": "zero-shot"}


@pytest.mark.parametrize("name", ["shop", "video", "news"])
def test_served_scores_are_those_of_an_evaluation(service, name):
    """By adapters, the joint model and the general head."""
    with client_of(service) as client:
        check_scores(engine_of(service), client, name)


def test_the_general_head_orders_by_its_task_alone(service):
    """Another task has one prediction for all items: it is refused."""
    with client_of(service) as client:
        asked = {"user": "u", "k": 3}
        answer = client.post("/v1/news/recommend", json=asked).json()
        assert (answer["model"], len(answer["items"])) == ("zero-shot", 3)
        assert client.post("/v1/news/recommend", json={**asked, "task": "click"}).is_success
        answer = client.post("/v1/shop/recommend", json=asked).json()
        assert answer["model"] == "finetuned"
