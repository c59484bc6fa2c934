"""Which tests should see a fault in a file: the mirror rule of ``tests/``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def matching_tests(path: str, root: Path) -> tuple[str, ...]:
    """The test files of a module, relative to ``root``.

    ``kernels/lrn.py`` is tested by ``tests/kernels/test_lrn.py``, and by ``test_lrn_NAME.py`` beside it unless
    ``kernels/lrn_NAME.py`` exists, whose tests those are. A module with no file of its own is tested by those of its
    package, then of the packages around it.
    """
    module = PurePosixPath(path)
    folder = root / "tests" / module.parent
    own = [folder / f"test_{module.stem}.py"]
    own += sorted(
        test
        for test in folder.glob(f"test_{module.stem}_*.py")
        if not (root / module.parent / test.name.removeprefix("test_")).exists()
    )
    found = [test for test in own if test.exists()]
    if not found:
        packages = [folder, *folder.parents]
        packages = packages[: packages.index(root / "tests")]
        found = [test for package in packages for test in sorted(package.glob("test_*.py"))]
    return tuple(test.relative_to(root).as_posix() for test in found)
