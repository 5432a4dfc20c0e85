"""The shape of the package: no import cycles, no overloaded names, no classes with too many duties."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hra_diffusion"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text("utf-8")
    )
    for path in PACKAGE.rglob("*.py")
}


def lazy_exports() -> dict[str, str]:
    """The modules of the names that packages export lazily, by "package.name"."""
    exports = {}
    for package, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "attach":
                table = ast.literal_eval(node.args[1])
                exports |= {f"{package}.{name}": origin for origin, names in table.items() for name in names}
    return exports


LAZY = lazy_exports()


def imported_modules(name: str) -> set[str]:
    """The modules that a module imports anywhere: at its top, in functions and for type checking."""
    modules = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                while part in LAZY:
                    part = f"{LAZY[part]}.{alias.name}"
                modules.add(part if part in MODULES else part.rpartition(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules & MODULES.keys() - {name}


def functions() -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of the package."""
    return [
        node
        for module in MODULES.values()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_modules_import_each_other():
    packages = {name.rpartition(".")[0] for name in LAZY}  # their wildcard imports are for type checkers
    graph = {name: imported_modules(name) for name in MODULES.keys() - packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from error


def test_no_module_is_imported_by_a_string():
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                assert "hra_diffusion." not in ast.unparse(node.args[0]) or name == "hra_diffusion.cli.main"


def test_no_class_has_more_than_20_methods():
    classes = [node for module in MODULES.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    sizes = {node.name: sum(isinstance(part, ast.FunctionDef) for part in node.body) for node in classes}
    assert {name: size for name, size in sizes.items() if size > 20} == {}


def overrides() -> set[ast.AST]:
    """Methods that a base class in the package has, too: with it they are one method."""
    classes = [node for module in MODULES.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    methods = {node.name: [part for part in node.body if isinstance(part, ast.FunctionDef)] for node in classes}

    def inherited(name: str) -> set[str]:
        return {part.name for base in bases.get(name, ()) for part in methods.get(base, ())}.union(
            *(inherited(base) for base in bases.get(name, ()))
        )

    return {part for name in methods for part in methods[name] if part.name in inherited(name)}


def test_no_function_name_is_defined_more_than_four_times():
    repeated = overrides()
    counts = Counter(node.name for node in functions() if not node.name.startswith("__") and node not in repeated)
    assert {name: count for name, count in counts.items() if count > 4 and name not in ("main", "forward")} == {}


def test_no_room_of_the_training_has_more_than_20_modules_and_its_top_not_more_than_10():
    folders = [PACKAGE / "training", *(path for path in (PACKAGE / "training").iterdir() if path.is_dir())]
    counts = {folder.name: len(list(folder.glob("*.py"))) for folder in folders}
    assert counts["training"] <= 10
    assert max(counts.values()) <= 20
