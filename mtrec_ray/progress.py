"""How a stage tells a person what it does."""

from collections.abc import Callable

Log = Callable[[str], None]
