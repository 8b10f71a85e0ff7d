"""What all tests share: where `tests.builders` is found, and no stop-watch for properties."""

import sys
from pathlib import Path

from hypothesis import settings

# Importlib mode adds no path, and pytest may be started in other ways than `python -m pytest`.
TOP = str(Path(__file__).parents[1])
if TOP not in sys.path:
    sys.path.insert(0, TOP)

# Hypothesis fails an example that takes longer than 200 ms: on a busy machine any does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Files of two processes are handed out in this order: one that takes minutes must not come last.
LONGEST = ("test_submit.py", "test_pipeline.py", "test_faults.py")


def pytest_collection_modifyitems(items):
    """The longest files first, the others in their order."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
