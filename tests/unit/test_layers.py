"""The floors of the house: arrows point down only, and Ray stays at the edge. Imports by `ast`."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FLOORS = {
    "jobs": 5, "stages": 4, "search": 3, "training": 3, "serving": 3, "model": 2, "evaluation": 2,
    "candidates": 2, "sources": 2, "data": 1,
    "project": 0, "progress": 0,
}  # fmt: skip
RAY_DATA_MODULES = {
    "mtrec_ray.data.preparing.elsewhere",
    "mtrec_ray.data.preparing.passes",
    "mtrec_ray.data.preparing.prepare",
    "mtrec_ray.data.preparing.scan",
    "mtrec_ray.data.preparing.shuffle",
    "mtrec_ray.data.stream",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for folder in ("mtrec_ray", "jobs")
    for path in sorted((TOP / folder).rglob("*.py"))
}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that can run: inside functions, too, but not below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if for_types_only(child):
            continue
        yield child
        yield from run_nodes(child)


def imported_names(source: str) -> set[str]:
    """Everything that a source imports: modules, and for `from a import b` also `a.b`."""
    found: set[str] = set()
    for node in run_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned"
            found |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def with_packages(name: str) -> set[str]:
    """A module and the packages around it, whose `__init__` runs first."""
    parts = name.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


@cache
def own_imports(module: str) -> frozenset[str]:
    """Modules of this project that a module imports itself."""
    found = imported_names(MODULES[module].read_text())
    named = {n for n in found if n in MODULES}
    return frozenset({p for n in named for p in with_packages(n)} & set(MODULES) - {module})


@cache
def foreign_imports(module: str) -> frozenset[str]:
    """Top-level packages that a module imports itself."""
    return frozenset(n.split(".")[0] for n in imported_names(MODULES[module].read_text()))


@cache
def reached(module: str) -> frozenset[str]:
    """The module and all of this project that importing it and calling its functions imports."""
    seen, waiting = {module}, [module]
    while waiting:
        for name in own_imports(waiting.pop()) - seen:
            seen.add(name)
            waiting.append(name)
    return frozenset(seen)


def who_reach(module: str, package: str) -> list[str]:
    """Of all that a module reaches, those that import a foreign package."""
    return sorted(m for m in reached(module) if package in foreign_imports(m))


def layer(module: str) -> str:
    """The floor's name: jobs, or what follows mtrec_ray."""
    parts = module.split(".")
    return parts[0] if parts[0] == "jobs" else [*parts, ""][1]


def modules_of(*layers: str) -> list[str]:
    return [m for m in MODULES if layer(m) in layers]


def test_there_are_modules_on_every_floor():
    """The checks below see the project: each floor has modules, and known imports are found."""
    assert {layer(m) for m in MODULES} >= {*FLOORS, "report"}
    assert "mtrec_ray.training.losses" in own_imports("mtrec_ray.training.step")
    assert "mtrec_ray.project.scenario" in reached("mtrec_ray.training.step")
    assert "ray" in foreign_imports("mtrec_ray.data.stream")
    assert who_reach("mtrec_ray.training.loop", "torch")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import ray.data", {"ray.data"}),
        ("def f():\n    from ray import data", {"ray", "ray.data"}),
        ("try:\n    import ray as r\nexcept ImportError:\n    r = None", {"ray"}),
        ("class A:\n    import ray", {"ray"}),
        ("if TYPE_CHECKING:\n    import ray\nimport json", {"json"}),
        ("x = 'import ray'", set()),
    ],
)
def test_the_reader_of_imports(source, wanted):
    """Imports are found wherever they can run, and not where they are only for types."""
    assert imported_names(source) == wanted


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in FLOORS])
def test_arrows_point_down(module):
    """A module imports only its own floor and those below it."""
    above = {
        name for name in own_imports(module) if FLOORS.get(layer(name), 0) > FLOORS[layer(module)]
    }
    assert not above, f"{module} (floor {layer(module)}) imports {sorted(above)}"


def test_reports_are_made_by_stages_and_jobs():
    """`report` is imported by stages and jobs only, and imports neither of those nor Ray."""
    users = {layer(m) for m in MODULES if any(layer(n) == "report" for n in own_imports(m))}
    assert users <= {"stages", "jobs", "report"}
    for module in modules_of("report"):
        assert not {layer(n) for n in reached(module)} & {"stages", "jobs"}
        assert not who_reach(module, "ray")


@pytest.mark.parametrize(
    "module", modules_of("training", "model", "evaluation", "search", "serving")
)
def test_what_is_no_stage_never_reaches_ray(module):
    """No import of training, model, evaluation or search ends in Ray, through whatever module."""
    assert not who_reach(module, "ray")


@pytest.mark.parametrize("module", modules_of("project"))
@pytest.mark.parametrize("package", ["torch", "ray", "transformers", "pyarrow", "numpy"])
def test_the_project_knows_nothing_of_torch_or_ray(module, package):
    """The project package reaches neither torch nor Ray nor what works on data."""
    assert not who_reach(module, package)


@pytest.mark.parametrize("module", modules_of("data", "evaluation"))
def test_data_and_evaluation_never_reach_torch(module):
    """Rows are prepared, and numbers are measured, without torch."""
    assert not who_reach(module, "torch")


def test_data_modules_with_ray_are_used_by_stages_only():
    """Few of the data modules reach Ray; stages alone use them."""
    with_ray = {m for m in modules_of("data") if who_reach(m, "ray")}
    assert with_ray <= RAY_DATA_MODULES
    users = {m for m in MODULES if own_imports(m) & with_ray}
    assert {layer(m) for m in users - with_ray} == {"stages"}


def test_the_trainer_is_built_in_one_place():
    """`TorchTrainer` is imported by stages/train.py alone."""
    names = {m: imported_names(path.read_text()) for m, path in MODULES.items()}
    users = [m for m, found in names.items() if any("TorchTrainer" in n for n in found)]
    assert users == ["mtrec_ray.stages.train"]


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) != "jobs"])
def test_the_package_imports_no_tests_benchmarks_or_jobs(module):
    """Product code imports nothing from tests, benchmarks or jobs."""
    assert not foreign_imports(module) & {"tests", "benchmarks", "jobs"}
