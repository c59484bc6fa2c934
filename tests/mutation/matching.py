"""Which tests should see a fault in a file: the mirror rule of ``tests/``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

TestFiles = tuple[str, ...]


def matching_tests(path: str, root: Path, *, wider: bool = False) -> tuple[TestFiles, ...]:
    """The test files of a module, relative to ``root``, in the order in which a fault is shown to them.

    ``kernels/lrn.py`` is tested by ``tests/kernels/test_lrn.py``, and by ``test_lrn_NAME.py`` beside it unless
    ``kernels/lrn_NAME.py`` exists, whose tests those are. With ``wider``, the other tests of its package come next.
    A module with no file of its own is tested by those of its package, then by those of the packages around it.
    Compiling all kernels takes longest, so that comes last in its package.
    """
    module = PurePosixPath(path)
    folder = root / "tests" / module.parent
    own = [folder / f"test_{module.stem}.py"]
    own += sorted(
        test
        for test in folder.glob(f"test_{module.stem}_*.py")
        if not (root / module.parent / test.name.removeprefix("test_")).exists()
    )
    own = [test for test in own if test.exists()]
    packages = [folder, *folder.parents]
    packages = packages[: packages.index(root / "tests")]
    if own:
        packages = packages[:1] if wider else []
    steps = [own, *(sorted(set(at.glob("test_*.py")).difference(own), key=_is_slow_and_name) for at in packages)]
    return tuple(tuple(test.relative_to(root).as_posix() for test in step) for step in steps if step)


def _is_slow_and_name(test: Path) -> tuple[bool, str]:
    return test.name == "test_compiled.py", test.name
