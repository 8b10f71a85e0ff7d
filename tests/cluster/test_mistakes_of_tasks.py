"""What a job says of an error that a real Ray task raised."""

import numpy as np
import pytest
import ray

from jobs.common import problems_of
from mtrec_ray.project.base import ProjectError, refuse


def test_a_bug_in_a_task_is_no_mistake_of_the_user():
    """NumPy's ValueError in a task is a ValueError here, too, and has no lines for the user."""

    def multiply() -> np.ndarray:
        return np.ones(3) * np.ones(4)

    with pytest.raises(ValueError, match="could not be broadcast") as caught:
        ray.get(ray.remote(max_retries=0)(multiply).remote())
    assert problems_of(caught.value) is None


def test_a_mistake_that_a_task_finds_is_its_lines():
    """A ProjectError of a task arrives as one, with all of its lines."""

    def look() -> None:
        refuse(["a: found 1; allowed: 2", "b: found 3; allowed: 4"])

    with pytest.raises(ProjectError) as caught:
        ray.get(ray.remote(max_retries=0)(look).remote())
    assert problems_of(caught.value) == ["a: found 1; allowed: 2", "b: found 3; allowed: 4"]
