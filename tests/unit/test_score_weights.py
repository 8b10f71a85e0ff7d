"""A joint validation score that cannot exist is refused before training."""

import numpy as np
import pytest

from mtrec_ray.evaluation.score_weights import score_problems
from tests.builders import make_catalogues, make_rows, two_scenario_project, write_prepared
