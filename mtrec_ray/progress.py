"""How a stage tells a person what it does."""

from collections.abc import Callable

Say = Callable[[str], None]
