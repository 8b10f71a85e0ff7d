"""Files of the node's cache: made once, kept within bounds, and safe from runs that are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtrec_ray.training import node_cache
from mtrec_ray.training.build import cache_folder
from mtrec_ray.training.node_cache import make_room, open_rows
from tests.builders import two_scenario_project

SHAPE = (8, 4)
TOP = Path(__file__).parents[2]
# A run that is killed while it fills a file.
FILL_FOR_EVER = """
import sys, time
from pathlib import Path
from mtrec_ray.training.node_cache import open_rows

def fill(rows, share, shares):
    rows[0] = 1
    print("filling", flush=True)
    time.sleep(100)

open_rows(Path(sys.argv[1]) / "killed.f32", (8, 4), fill)
"""


def ones(rows, share, shares):
    """Fill a file."""
    rows[share::shares] = 1


def make_old(path, seconds):
    """Have a file look as if it was used some time ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def filling(tmp_path):
    """A process that is filling a file in the folder."""
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    process = subprocess.Popen(
        [sys.executable, "-c", FILL_FOR_EVER, str(tmp_path)],
        stdout=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "filling\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_file_is_filled_once(tmp_path):
    """The second call maps what the first has written."""
    first = open_rows(tmp_path / "a.f32", SHAPE, ones)
    second = open_rows(tmp_path / "a.f32", SHAPE, lambda *_: pytest.fail("filled again"))
    assert torch.equal(first, torch.ones(SHAPE))
    assert torch.equal(second, first)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.timeout(120)
def test_a_killed_run_leaves_no_part_for_ever(tmp_path, filling):
    """The part of a run that still fills it stays; once that is killed, the next run deletes it."""
    (part,) = tmp_path.glob("*.part")
    make_old(part, 10 * node_cache.PART_GRACE_SECONDS)
    make_room(tmp_path, 0)
    assert part.exists()
    filling.send_signal(signal.SIGKILL)
    filling.wait()
    make_room(tmp_path, 0)
    assert not part.exists()


def test_a_new_part_stays(tmp_path):
    """A part that was made a moment ago may not be locked yet."""
    part = tmp_path / "a.123.part"
    part.write_bytes(b"")
    make_room(tmp_path, 0)
    assert part.exists()


def test_parts_count_as_used_space(tmp_path, monkeypatch):
    """What others are filling leaves less room for files, of which the oldest go first."""
    monkeypatch.setattr(node_cache, "MAX_CACHE_BYTES", 300)
    for age, name in enumerate("abc"):
        (tmp_path / f"{name}.f32").write_bytes(bytes(100))
        make_old(tmp_path / f"{name}.f32", 10 * age)
    make_room(tmp_path, 0)
    assert len(list(tmp_path.glob("*.f32"))) == 3
    (tmp_path / "d.123.part").write_bytes(bytes(150))
    make_room(tmp_path, 0)
    assert [f.stem for f in tmp_path.glob("*.f32")] == ["a"]


def test_a_file_that_is_deleted_before_it_is_mapped_is_made_again(tmp_path, monkeypatch):
    """Another run makes room between making and mapping: the rows are right nevertheless."""
    make_file, made = node_cache.make_file, []

    def evicted(path, *more):
        make_file(path, *more)
        made.append(path)
        if len(made) < 3:
            path.unlink()

    monkeypatch.setattr(node_cache, "make_file", evicted)
    assert torch.equal(open_rows(tmp_path / "a.f32", SHAPE, ones), torch.ones(SHAPE))
    assert len(made) == 3


def test_a_cache_that_is_too_small_is_an_error(tmp_path, monkeypatch):
    """A file that is deleted again and again does not keep a run for ever."""
    make_file = node_cache.make_file

    def evicted(path, *more):
        make_file(path, *more)
        path.unlink()

    monkeypatch.setattr(node_cache, "make_file", evicted)
    with pytest.raises(RuntimeError, match=r"a\.f32: deleted 5 times"):
        open_rows(tmp_path / "a.f32", SHAPE, ones)


def test_each_user_has_a_folder(monkeypatch):
    """By default two users of a node do not write to one folder."""
    project = two_scenario_project()
    mine = cache_folder(project)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert cache_folder(project) != mine
    assert "4321" in str(cache_folder(project))
