"""The house: rooms on floors, imports that point down, doors that show only what others need."""

import ast
import importlib
import subprocess
import sys

import pytest
from parts import ROOT

import hf_sharp_unlearn

# From the top floor down: a room imports from rooms below it. setup.py maps `kernels` and `benchmarks` in.
FLOORS = ["__main__", "commands", "benchmarks", "demo", "trainer", "sharing", "report", "run", "methods", "analysis",
          "language", "metrics", "step", "data", "arguments", "runtime", "kernels"]  # fmt: skip
PLACES = {
    "hf_sharp_unlearn": ROOT / "hf_sharp_unlearn",
    "hf_sharp_unlearn.benchmarks": ROOT / "benchmarks",
    "hf_sharp_unlearn.kernels": ROOT / "kernels" / "sharp_minmax" / "torch-ext" / "sharp_minmax",
}
PACKAGE = "hf_sharp_unlearn"


def modules():
    """{dotted name: (path, is a package)} of every module."""
    found = {}
    for prefix, folder in PLACES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            package = parts[-1] == "__init__"
            found[".".join((prefix, *(parts[:-1] if package else parts)))] = path, package
    return found


MODULES = modules()
ROOMS = [room for room in FLOORS if (PLACES["hf_sharp_unlearn"] / room).is_dir()]


def room_of(module):
    """First part of the name below the package; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def imports_of(module, typing_too=True):
    """(line, module imported from, name or None) of every import of the library, those inside functions included."""
    path, package = MODULES[module]
    tree = ast.parse(path.read_text("utf-8"))
    if not typing_too:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    rooms = {}  # names under which a module uses whole rooms
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            yield node.lineno, rooms[node.value.id], node.attr
        if isinstance(node, ast.ImportFrom):
            base = module.split(".") if package else module.split(".")[:-1]
            base = base[: len(base) - (node.level - 1)] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if target.split(".")[0] == PACKAGE:
                for alias in node.names:
                    whole = f"{target}.{alias.name}"
                    if whole in MODULES and target == PACKAGE:
                        rooms[alias.asname or alias.name] = whole
                    yield (
                        node.lineno,
                        *((whole, None) if whole in MODULES and target == PACKAGE else (target, alias.name)),
                    )
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name, None) for a in node.names if a.name.split(".")[0] == PACKAGE)


def door_of(room):
    return importlib.import_module(f"{PACKAGE}.{room}").__all__


def test_every_room_has_a_floor_and_a_short_sign_on_its_door():
    rooms = {room_of(module) for module in MODULES} - {None}
    assert rooms <= set(FLOORS), "a new room: give it a floor in FLOORS"
    for room in ROOMS:
        sign = ast.get_docstring(ast.parse(MODULES[f"{PACKAGE}.{room}"][0].read_text("utf-8")))
        assert sign and len(sign.splitlines()) <= 5, f"{room}/__init__.py says in one to five lines what lives there"
    assert len(list(PLACES[PACKAGE].glob("*.py"))) <= 8


def test_the_picture_in_contributing_shows_the_same_floors():
    lines = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("```")
    picture = next(block for block in lines if "commands/" in block and "runtime/" in block)
    words = [line.split()[0].removesuffix("/").removesuffix(".py") for line in picture.splitlines() if line.strip()]
    assert [word for word in words if word in FLOORS] == [f for f in FLOORS if f not in ("__main__", "language")]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_and_go_through_doors(module):
    if module == PACKAGE:
        return  # it imports its names when they are used
    mine = room_of(module)
    for line, target, name in imports_of(module):
        other, where = room_of(target), f"{module}, line {line}"
        if other in (None, mine):
            if other is None and name is not None and module.startswith(f"{PACKAGE}.benchmarks"):
                continue  # benchmarks use the public names, as a user does
            assert other == mine or name == "__version__", f"{where}: name the room, not the package"
            continue
        assert FLOORS.index(other) > FLOORS.index(mine), f"{where}: {other} lies above {mine}"
        if other not in ("kernels", "benchmarks") and mine != "__main__" and name is not None:
            assert target == f"{PACKAGE}.{other}", f"{where}: import {name} from the room {other}, not from {target}"
            public = f"{target}.{name}" in MODULES or other in ("arguments", "demo", "trainer")
            assert public or name in door_of(other), f"{where}: the room {other} does not export {name}"


def test_no_circle():
    """Among modules, imports inside functions included."""
    graph = {}
    for module in MODULES:
        if module != PACKAGE:
            found = {f"{target}.{name}" if f"{target}.{name}" in MODULES else target
                     for _, target, name in imports_of(module, typing_too=False)}  # fmt: skip
            graph[module] = {target for target in found if target in MODULES and target not in (module, PACKAGE)}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            done.add(path.pop())

    for module in graph:
        visit(module)


def test_doors_show_only_what_others_need():
    """Another room, the package itself or the documentation uses every name that a room exports."""
    texts = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    used = {}
    for module in MODULES:
        for _, target, name in imports_of(module):
            if room_of(module) != room_of(target):
                used.setdefault(room_of(target), set()).add(name)
    for room in ROOMS:
        if room not in ("metrics", "commands"):  # a public namespace; nothing imports commands
            spare = {name for name in door_of(room) if name not in used.get(room, ()) and name not in texts}
            assert not spare, f"{room} exports {sorted(spare)}, which nobody uses"


def test_the_public_names():
    names = {name for line, target, name in imports_of(PACKAGE)}
    assert set(hf_sharp_unlearn.__all__) == names, "what type checkers see and what is imported are the same"
    assert all(getattr(hf_sharp_unlearn, name) is not None for name in hf_sharp_unlearn.__all__)
    assert set(hf_sharp_unlearn.__all__) <= set(dir(hf_sharp_unlearn))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_sharp_unlearn.nothing


def test_a_room_brings_only_rooms_below_it_and_help_brings_no_torch():
    rooms = [room for room in reversed(FLOORS) if room not in ("__main__", "demo", "language", "benchmarks")]
    code = f"""
import importlib, os, sys
from hf_sharp_unlearn.commands.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {{"torch", "transformers", "numpy"}} & sys.modules.keys()
assert not heavy, f"--help imports {{heavy}}"
rooms = {rooms!r}
loaded = lambda: {{name.split(".")[1] for name in sys.modules if name.startswith("hf_sharp_unlearn.")}}
for place, room in enumerate(rooms):
    importlib.import_module(f"hf_sharp_unlearn.{{room}}")
    above = loaded() & set(rooms[place + 1:]) - {{"commands"}}
    assert not above, f"importing {{room}} brings {{above}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
