"""What all tests share: where `tests.builders` is found, and no stop-watch for properties."""

import os
import sys
from pathlib import Path

from hypothesis import settings

# Importlib mode adds no path, and pytest may be started in other ways than `python -m pytest`.
TOP = str(Path(__file__).parents[1])
if TOP not in sys.path:
    sys.path.insert(0, TOP)

# Two processes of tests with a thread of torch for each core starve one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis fails an example that takes longer than 200 ms: on a busy machine any does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Files of two processes are handed out in this order: one that takes minutes must not come last.
LONGEST = (
    "test_faults.py", "test_finetune.py", "test_pipeline.py", "test_resume.py", "test_real_data.py",
    "test_stream.py", "test_evaluate.py", "test_submit.py", "test_tune.py", "test_audit.py",
    "test_mistakes.py", "test_drawn_projects.py", "test_inputs.py", "test_train.py",
    "test_prepare.py", "test_teacher.py", "test_snapshot.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first, the others in their order."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
