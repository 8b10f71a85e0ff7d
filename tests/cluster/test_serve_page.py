"""The page's routes tell what the model computes, and the page shows it, in a real browser."""

import importlib.util
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import uvicorn

from mtrec_ray.data.end_states import user_parts, users_at_end
from mtrec_ray.stages.serving.app import create_app
from mtrec_ray.stages.serving.explain import Explainer
from mtrec_ray.stages.serving.versions import OtherModel
from tests.cluster.serving import TOKEN, client_of, engine_of, service_of

pytestmark = pytest.mark.cluster

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NO_BROWSER = CHROMIUM is None or importlib.util.find_spec("playwright") is None
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(version, tmp_path_factory):
    """The service; its joint model stands in for one that was not chosen, too."""
    shop = version.scenarios["shop"]
    other = {"shop": OtherModel(shop.model, shop.vectors)}
    return service_of(replace(version, others=other), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(service):
    with client_of(service) as found:
        yield found


@pytest.fixture(scope="module")
def user(client):
    """The example with the longest history."""
    return client.get("/v1/shop/users").json()["users"][0]


def sent(history):
    """A told history as a request bears it."""
    return [{name: value for name, value in met.items() if name != "text"} for met in history]


def test_examples_are_users_with_histories(service, client):
    """Users of the prepared data, those with more items of a history first."""
    layout = engine_of(service).scenarios["shop"].ranker.layout
    known = users_at_end(layout, user_parts(layout.prepared, "shop")[0])
    length = dict(zip(known.ids.tolist(), (known.history >= 0).sum(1).tolist(), strict=True))
    found = [length[one] for one in client.get("/v1/shop/users").json()["users"]]
    assert found == sorted(length.values(), reverse=True)[: len(found)]
    assert found[0] > 0


def test_a_told_history_is_the_users_own(service, client, user):
    """Sent as a request's, it gives the model the same history and the same numbers."""
    from mtrec_ray.stages.serving.requests import Asker

    told = client.get(f"/v1/shop/users/{user}").json()
    askers = engine_of(service).scenarios["shop"].askers
    assert not told["new_user"]
    assert told["rows"] == len(told["history"])
    assert all(met["text"] for met in told["history"])
    stored = askers.known([Asker(user=user)]).users
    own = askers.known([Asker.model_validate({"history": sent(told["history"])})]).users
    np.testing.assert_array_equal(own.history, stored.history)
    np.testing.assert_array_equal(own.ages, stored.ages)
    np.testing.assert_allclose(own.numeric, stored.numeric, rtol=1e-4, atol=1e-4)


def test_an_unknown_user_has_nothing(client):
    """Nobody is no mistake: he is new. A scenario that is not there is one."""
    told = client.get("/v1/shop/users/no/body").json()
    assert (told["user"], told["new_user"], told["history"]) == ("no/body", True, [])
    answer = client.get("/v1/nowhere/users/nobody")
    assert answer.status_code == 404
    assert answer.json() == {"errors": ["scenario: found 'nowhere'; allowed: shop, video"]}
    assert client.get("/v1/shop/users/" + "u" * 300).status_code == 422


def test_an_explanation_is_of_the_served_score(service, client, user):
    """Its predictions are the network's that `score` tells; its effects are the explainer's."""
    item = client.post("/v1/shop/recommend", json={"user": user, "k": 1}).json()["items"][0]
    asked = {"user": user, "item": item["item"], "by": {"click": 0.5, "buy": 2}}
    found = client.post("/v1/shop/explain", json=asked).json()
    own = engine_of(service).scenarios["shop"]
    assert found["blend"] == asked["by"]
    assert found["text"]
    if own.scorer.beside is None:
        assert found["predictions"] == pytest.approx(item["predictions"], abs=1e-4)
    click, buy = (found["predictions"][task] for task in ("click", "buy"))
    assert found["score"] == pytest.approx(0.5 * click + 2 * click * buy, abs=1e-5)
    layout = own.ranker.layout
    known = users_at_end(layout, user_parts(layout.prepared, "shop")[0])
    place = int(np.flatnonzero(known.ids == user)[0])
    number = own.askers.state.fresh.item_of[item["item"]]
    plain = client.post("/v1/shop/explain", json={**asked, "by": None, "words": False}).json()
    wanted = Explainer(own.ranker).explain(known.of(place, place + 1), number)
    keys = {"history": "item_id", "statistics": "group", "columns": "column"}
    for name, key in keys.items():
        told = {one[key.removesuffix("_id")]: one["effect"] for one in plain[name]}
        effects = {getattr(one, key): one.effect for one in getattr(wanted, name)}
        assert told == pytest.approx(effects, abs=1e-5)
    video = engine_of(service).scenarios["video"]
    for part, effect in zip(plain["elsewhere"], wanted.elsewhere, strict=True):
        assert part["scenario"] == "video"
        assert part["item"] == video.ranker.items.ids[effect.item]
        assert part["text"] == video.texts[effect.item]
        assert part["effect"] == pytest.approx(effect.effect, abs=1e-5)
    assert len(plain["elsewhere"]) > 0
    assert plain["profile"] == []
    assert plain["words"] is None
    assert len(found["words"]) > 0


def test_an_explanation_knows_new_events(version, tmp_path):
    """An event is in the explained history at once, and moves the explained score."""
    with client_of(service_of(version, tmp_path)) as client:
        asked = {"user": "a new one", "item": "shop_00005", "words": False}
        before = client.post("/v1/shop/explain", json=asked).json()
        assert before["history"] == []
        event = {"id": "1", "user": "a new one", "item": "shop_00003", "labels": {"click": 1}}
        client.post("/v1/shop/events", json={"events": [event]})
        after = client.post("/v1/shop/explain", json=asked).json()
        assert [one["item"] for one in after["history"]] == ["shop_00003"]
        assert after["score"] != before["score"]


def test_without_captum_words_are_refused(client, monkeypatch):
    """501, and the extra that has it; without words there is an answer."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = {"user": "u", "item": "shop_00001"}
    answer = client.post("/v1/shop/explain", json=asked)
    assert answer.status_code == 501
    assert "pip install 'mtrec-ray[explain]'" in answer.json()["errors"][0]
    assert client.post("/v1/shop/explain", json={**asked, "words": False}).is_success


def test_lists_side_by_side(service, client, user):
    """The served model's list by its network, the other model's (here the same), popular items."""
    lists = client.post("/v1/shop/compare", json={"user": user, "k": 6}).json()["lists"]
    joint, other, popular = lists
    assert [one["kind"] for one in lists] == ["joint", "joint", "popular"]
    assert joint["items"] == other["items"]
    scores = [one["score"] for one in joint["items"]]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert all(one["text"] for one in joint["items"])
    crowd = engine_of(service).scenarios["shop"].askers.crowd
    times = np.bincount(crowd.positives["shop"].item, minlength=40)
    item_of = engine_of(service).scenarios["shop"].askers.state.fresh.item_of
    taken = [int(times[item_of[one["item"]]]) for one in popular["items"]]
    met = {one["item"] for one in client.get(f"/v1/shop/users/{user}").json()["history"]}
    left = [int(times[number]) for name, number in item_of.items() if name not in met]
    assert taken == sorted(left, reverse=True)[:6]


WRONG = [
    ("explain", {"user": "u", "item": "nothing"}, "item: found 'nothing'; allowed: an item of"),
    ("explain", {"item": "shop_00001"}, "user: found neither user and history"),
    ("explain", {"user": "u", "item": "shop_00001", "by": {"x": 1}}, "by: found 'x'; allowed: cl"),
    ("compare", {"user": "u", "k": 999}, "k: found 999; allowed: at most"),
    ("compare", {"user": "u", "by": {"click": 0}}, "by: found no weight above 0"),
]


@pytest.mark.parametrize(("route", "body", "line"), WRONG)
def test_wrong_values_are_told(client, route, body, line):
    """422, and a line."""
    answer = client.post(f"/v1/shop/{route}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0].startswith(line)


def test_the_page_needs_no_token_and_what_it_asks_does(client):
    """It runs its own script alone; the routes that it asks are guarded."""
    answer = client.get("/", headers={"Authorization": ""})
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "//" not in answer.text.split("<script>")[0].replace("<!--", "")
    for path in ("/v1/shop/users", "/v1/shop/users/u"):
        assert client.get(path, headers={"Authorization": ""}).status_code == 401


# --- the browser --------------------------------------------------------------------------------


@contextmanager
def listening(app):
    """The address of an app that a thread of this process serves."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [probe]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(version, tmp_path_factory):
    service = service_of(version, tmp_path_factory.mktemp("store"))
    with listening(create_app(service, TOKEN)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


def until(page, condition):
    """Wait until a condition holds on the page, whose policy lets the page itself evaluate none."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def opened(browser, address, **options):
    """The page with the token given, its focus on the scenario; and what it says went wrong."""
    page, wrong = browser.new_page(**options), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Policy" in line.text else None)
    page.goto(address)
    until(page, "document.activeElement.id === 'token'")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'scenario'")
    until(page, "document.getElementById('user').value !== ''")
    return page, wrong


def listed(page):
    """Ids of the items on the page, once it does not wait for an answer."""
    page.wait_for_selector("#items[aria-busy=false] li")
    return page.eval_on_selector_all("#items li", "all => all.map((li) => li.dataset.item)")


def tab_to(page, condition):
    """Press Tab until the focus is where a condition on its element `e` holds."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(f"(() => {{ const e = document.activeElement; return {condition}; }})()"):
            return
    raise AssertionError(f"Tab does not reach {condition}")


@pytest.mark.skipif(NO_BROWSER, reason="no chromium, or no playwright")
def test_the_page_by_keyboard_alone(browser, address, client, user):
    """Scenario, user, list, why, and a history without an item, each as the API answers."""
    page, wrong = opened(browser, address)
    page.keyboard.press("ArrowDown")
    until(page, "document.getElementById('scenario').value === 'video'")
    page.keyboard.press("ArrowUp")
    until(page, "document.getElementById('user').value === '" + user + "'")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wanted = client.post("/v1/shop/recommend", json={"user": user, "k": 10}).json()
    assert listed(page) == [one["item"] for one in wanted["items"]]
    history = client.get(f"/v1/shop/users/{user}").json()["history"]
    tab_to(page, "e.textContent === 'Remove'")
    page.keyboard.press("Enter")
    shorter = client.post("/v1/shop/recommend", json={"history": sent(history[:-1]), "k": 10})
    assert listed(page) == [one["item"] for one in shorter.json()["items"]]
    assert page.evaluate("document.activeElement.textContent") == "Put back"
    tab_to(page, "e.type === 'range'")
    page.keyboard.press("ArrowLeft")
    until(page, "document.getElementById('by-tasks').checked")
    until(page, "document.getElementById('status').textContent.includes('predictions')")
    body = {"history": sent(history[:-1]), "k": 10, "by": {"click": 0.95, "buy": 0}}
    moved = client.post("/v1/shop/recommend", json=body).json()
    assert listed(page) == [one["item"] for one in moved["items"]]
    tab_to(page, "e.textContent === 'Why'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reasons .bar")
    assert page.evaluate("document.activeElement.id") == "why-title"
    page.wait_for_selector("#side [data-kind=popular] li")
    assert wrong == []
    page.close()


@pytest.mark.skipif(NO_BROWSER, reason="no chromium, or no playwright")
def test_a_phone_needs_no_sideways_scrolling(browser, address):
    """At 375 px with a list, reasons and an error line; errors of the service stand on the page."""
    size = {"width": 375, "height": 700}
    page, wrong = opened(browser, address, viewport=size, color_scheme="dark")
    page.click("#ask-form button")
    listed(page)
    page.click("button.why >> nth=0")
    page.wait_for_selector("#reasons .bar")
    headings = page.eval_on_selector_all("#reasons h3", "all => all.map((h) => h.textContent)")
    assert headings == ["History", "From other scenarios", "Words", "Statistics"]
    assert page.inner_text("#reasons .bar .name >> text=/^video: /").startswith("video: ")
    page.evaluate("document.querySelector('#weight-click').value = 0")
    page.check("#by-tasks")
    page.wait_for_selector("#errors p")
    assert page.inner_text("#errors") == "by: found no weight above 0; allowed: at least one"
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert wrong == []
    page.close()
