"""What a run's notes say of a fault: rows lost or taken twice, steps made again, time lost."""

from collections import Counter

import pytest

from benchmarks import faults


def note(time, process, step, rank, rows, size=2):
    """What a process noted of a step."""
    return {
        "time": time, "process": process, "step": step, "rank": rank, "size": size,
        "rows": {"shop": rows},
    }  # fmt: skip


UNDISTURBED = [
    note(1, "a", 0, 0, [0, 1]), note(1, "b", 0, 1, [5, 6]),
    note(2, "a", 1, 0, [2, 3]), note(2, "b", 1, 1, [7, 8]),
]  # fmt: skip
KILLED = [
    *UNDISTURBED,
    note(9, "c", 1, 0, [2, 3]), note(9, "d", 1, 1, [7, 8]),
    note(10, "c", 2, 0, [4]), note(10, "d", 2, 1, [9]),
]  # fmt: skip


def test_the_last_time_of_a_step_counts():
    """A step that was made again counts once, with the rows of its last time."""
    again = [*UNDISTURBED, note(9, "c", 1, 0, [2, 4]), note(9, "d", 1, 1, [7, 9])]
    found = faults.counted(again)
    assert found[1]["shop"] == Counter([2, 4, 7, 9])
    assert found[0] == faults.counted(UNDISTURBED)[0]


def test_ranks_that_are_gone_do_not_count():
    """A step that one rank made again alone has that rank's rows only."""
    alone = [*UNDISTURBED, note(9, "c", 1, 0, [2, 3, 7, 8], size=1)]
    assert faults.counted(alone)[1]["shop"] == Counter([2, 3, 7, 8])


def test_uneven_rows():
    """Rows that whole passes of ten do not explain: left out, or three times in two passes."""
    by_step = faults.counted(KILLED)
    assert faults.uneven_rows(by_step, {"shop": 10}) == 0
    short = faults.counted(KILLED[:-1])  # nine rows: no whole pass, and each at most once
    assert faults.uneven_rows(short, {"shop": 10}) == 0
    twice = {0: {"shop": Counter(range(10))}, 1: {"shop": Counter([1, 1, 2])}}
    assert faults.uneven_rows(twice, {"shop": 10}) == 1
    lost = {0: {"shop": Counter([*range(9), 0])}}
    assert faults.uneven_rows(lost, {"shop": 10}) == 1


def test_time_and_steps_lost():
    """From the fault to the first step of a new process; step 1 was made again."""
    found = faults.went_on({"kind": "step"}, 2.5, KILLED)
    assert found == {"seconds": 6.5, "steps_again": 1, "step": 1}


def test_storage_fails_without_a_restart():
    """The next step of the same processes counts, and no step is made again."""
    later = [*UNDISTURBED, note(8, "a", 2, 0, [4]), note(8, "b", 2, 1, [9])]
    found = faults.went_on({"kind": "storage"}, 2.5, later)
    assert found == {"seconds": 5.5, "steps_again": 0, "step": 2}


@pytest.mark.parametrize("seed", range(5))
def test_plan_of_faults(seed):
    """Every kind once, by steps, before the last epoch; another order for each seed."""
    plan = faults.plan_faults(list(faults.KINDS), seed)
    steps = [fault["step"] for fault in plan]
    assert sorted(f["kind"] for f in plan) == sorted(faults.KINDS)
    assert steps == sorted(steps)
    assert max(steps) < (faults.EPOCHS - 1) * faults.STEPS
    assert plan != faults.plan_faults(list(faults.KINDS), seed + 1)
