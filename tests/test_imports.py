"""The structure of the code: which package may import which, and how large files, functions and packages may be.

Everything is read from the source with ``ast``; nothing is imported.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "dataloading", "fastalex", "bench")

# Packages and modules of fastalex by level: imports go to lower levels, or stay in the package.
LEVELS = (
    ("errors", "files", "console", "metrics", "datasets", "json_types", "startup", "optional_packages", "pictures"),
    ("network", "recipes"),
    ("options",),
    ("parallel",),
    ("cli",),
    ("training",),
    ("prediction",),
    ("evaluation", "studies", "interchange", "planning"),
    ("handcrafted", "reports"),  # handcrafted prints the paper's figures, which studies/ reads, beside its own
    ("reproduction",),
)  # and above them the commands and fastalex/__init__.py
FORBIDDEN = {("parallel", "recipes")}  # although it would go down
# Commands are at the top level, and the steps of a reproduction are commands.
MAY_NAME_OPTIONS = re.compile(
    r"fastalex\.(\w+|options\.\w+|(\w+\.)*\w*options|training\.resolve|reproduction\.(steps|hours))"
)
NEVER_NAME_OPTIONS = re.compile(r"fastalex\.(errors|files|console|metrics|datasets)")
OPTION = re.compile(r"(?<!torchrun )--[a-z]")  # torchrun's own options may be named by "torchrun --master-port"

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MOST_MODULES = {"kernels": 21, "bench": 21, "fastalex": 23}  # one file per operator, benchmark, command
MOST_MODULES_ELSEWHERE = 14

# --- reading the source -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported module, with the name taken from it if any."""

    module: str
    name: str | None
    line: int
    in_function: bool


@cache
def modules() -> dict[str, Path]:
    """All modules by dotted name; a package's name stands for its ``__init__.py``."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def syntax(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(modules()[module].read_text())


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports of the project's own packages, anywhere in it."""
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative
                parts = module.split(".")
                parent = parts[: len(parts) - node.level + (modules()[module].name == "__init__.py")]
                base = ".".join([*parent, *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.append(
                    Import(*((inside, None) if inside in modules() else (base, alias.name)), node.lineno, in_function)
                )
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(syntax(module), False)
    return tuple(item for item in found if item.module.split(".")[0] in PACKAGES)


def where(module: str, line: int) -> str:
    """A file and a line, to click on."""
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def check(problems: list[str]) -> None:
    """Fail with a list of problems, one a line."""
    if problems:
        pytest.fail("\n" + "\n".join(problems), pytrace=False)


# --- which way imports go ---------------------------------------------------------------------------------------------


def group(module: str) -> str:
    """The package or top-level module of fastalex that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def level(module: str) -> int:
    """The level of a module of fastalex; the highest for commands."""
    return next((number for number, names in enumerate(LEVELS) if group(module) in names), len(LEVELS))


def is_below(lower: str, upper: str) -> bool:
    """Whether a module of fastalex may be imported by another one; every module may import the errors."""
    return lower == "fastalex.errors" or level(lower) < level(upper)


def test_operators_and_data_know_nothing_of_the_rest():
    check(
        [
            f"{where(module, item.line)}: {module} imports {item.module}; it may only import its own package"
            for module in modules()
            for item in imports(module)
            if module.split(".")[0] in ("kernels", "dataloading") and item.module.split(".")[0] != module.split(".")[0]
        ]
    )


def test_fastalex_imports_go_down():
    problems = []
    for module in modules():
        for item in imports(module):
            if module.split(".")[0] != "fastalex" or item.module.split(".")[0] in ("kernels", "dataloading"):
                continue
            here = where(module, item.line)
            if item.module.split(".")[0] != "fastalex":
                problems.append(f"{here}: {module} imports {item.module}, which is not part of the package")
            elif item.module == "fastalex" and item.name is not None:
                problems.append(f"{here}: import {item.name} from its own module, not from fastalex")
            elif group(item.module) == "cli" and not (
                level(module) == len(LEVELS) or module.endswith("options") or module == "fastalex.training.resolve"
            ):
                problems.append(f"{here}: {module} imports fastalex.cli, which only commands and options may")
            elif (group(module), group(item.module)) in FORBIDDEN:
                problems.append(f"{here}: {group(module)} must not import {group(item.module)}")
            elif group(item.module) != group(module) and not is_below(item.module, module):
                problems.append(f"{here}: {module} imports {item.module}, which is not below it")
    check(problems)


def test_there_are_no_import_cycles():
    """Imports inside functions count, too."""
    state: dict[str, str] = {}
    cycles = []

    def visit(module: str, path: list[str]) -> None:
        state[module] = "open"
        for target in dict.fromkeys(item.module for item in imports(module)):
            if state.get(target) == "open":
                cycles.append(" -> ".join([*path[path.index(target) :], target]))
            elif target in modules() and target not in state:
                visit(target, [*path, target])
        state[module] = "done"

    for module in modules():
        if module not in state:
            visit(module, [module])
    check([f"import cycle: {cycle}" for cycle in cycles])


def test_no_import_of_our_own_is_hidden_in_a_function():
    """Except in commands: they import what takes seconds after they have parsed their options."""
    check(
        [
            f"{where(module, item.line)}: {item.module} is imported inside a function; import it at the top"
            for module in modules()
            for item in imports(module)
            if item.in_function and not (module.startswith("fastalex.") and level(module) == len(LEVELS))
            if (module, item.module) != ("fastalex.cli", "fastalex.parallel.failures")  # likewise
        ]
    )


def test_private_names_stay_in_their_module():
    check(
        [
            f"{where(module, item.line)}: {item.name or item.module} is private; make it public, or do not import it"
            for module in modules()
            for item in imports(module)
            if any(part.startswith("_") for part in (*item.module.split("."), item.name or ""))
        ]
    )


def test_only_commands_and_options_name_options():
    """Library code names parameters (stages), commands and options name options (--stages)."""
    check(
        [
            f"{where(module, node.lineno)}: {module} names an option in {node.value.strip().splitlines()[0][:60]!r}"
            for module in modules()
            if module.startswith("fastalex.")
            and (not MAY_NAME_OPTIONS.fullmatch(module) or NEVER_NAME_OPTIONS.fullmatch(module))
            for node in ast.walk(syntax(module))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and OPTION.search(node.value)
        ]
    )


# --- how large things are ---------------------------------------------------------------------------------------------


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in modules().values()}
    check(
        [
            f"{path.relative_to(ROOT)} has {length} lines, at most {LONGEST_FILE} are allowed; split it by subject"
            for path, length in lengths.items()
            if length > LONGEST_FILE
        ]
    )


def test_functions_fit_on_a_screen():
    check(
        [
            f"{where(module, node.lineno)}: {node.name} has {length} lines, at most {LONGEST_FUNCTION} are allowed"
            for module in modules()
            for node in ast.walk(syntax(module))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
        ]
    )


def test_packages_have_few_modules():
    folders: dict[Path, int] = {}
    for path in modules().values():
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    problems = []
    for folder, count in folders.items():
        name = str(folder.relative_to(ROOT))
        most = MOST_MODULES.get(name, MOST_MODULES_ELSEWHERE)
        if count > most:
            problems.append(f"{name}/ has {count} modules, at most {most} are allowed; make packages of it")
    check(problems)
