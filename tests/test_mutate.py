"""``tests/mutate.py`` finds faults where they are plausible, and says which of them tests see."""

from __future__ import annotations

import ast
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import mutate
from tests.mutation import campaign
from tests.mutation.c_faults import c_edits
from tests.mutation.campaign import CAUGHT, Campaign
from tests.mutation.faults import Fault, faults
from tests.mutation.matching import matching_tests
from tests.mutation.python_faults import python_edits
from tests.mutation.sandbox import Sandbox, seconds_by_file

MODULE = '''
def below(x: int, limit: int) -> bool:
    """Whether x < limit."""
    return x < limit


def opposite(x: int) -> int:
    return -x
'''
SEES_ONE = """
from kernels import limits

def test_below():
    assert __file__.startswith(limits.__file__.partition("kernels")[0])
    assert limits.below(1, 2) and not limits.below(2, 2) and limits.opposite(0) == 0
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two functions, of which the tests see one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # these tests need no plugin, and loading them takes time
    files = {"kernels/__init__.py": "", "kernels/limits.py": MODULE, "tests/kernels/test_limits.py": SEES_ONE}
    return write(tmp_path / "checkout", files)


def content(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_survives_is_printed_and_the_checkout_stays_as_it_is(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(checkout)
    assert mutate.main(["--files", "kernels"], checkout) == 1
    assert content(checkout) == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["kernels/limits.py", "2", "1", "1"], ["all", "2", "1", "1"]]
    assert lines[-2:] == ["survived:", "kernels/limits.py:8: return -x -> return x"]


def test_what_the_mirrored_tests_do_not_see_can_be_shown_to_the_package(checkout: Path) -> None:
    other = "from kernels import limits\n\ndef test_opposite():\n    assert limits.opposite(1) == -1\n"
    write(checkout, {"tests/kernels/test_other.py": other})
    assert mutate.main(["--files", "kernels/limits.py:8", "--wider"], checkout) == 0


def test_faults_that_are_known_to_be_equivalent_are_left_out(checkout: Path) -> None:
    write(checkout, {mutate.EQUIVALENT: "# why\nkernels/limits.py: return -x -> return x\n"})
    (left,) = mutate.choose(checkout, ["kernels"], seed=0)
    assert left.after == "return x <= limit"


def test_tests_that_fail_without_a_fault_are_an_error(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(checkout, {"tests/kernels/test_limits.py": "def test_wrong():\n    assert 1 == 2\n"})
    assert mutate.main(["--files", "kernels/limits.py"], checkout) == 2
    out, error = capsys.readouterr()
    assert out == ""  # no table of nothing
    assert "test_wrong" in error
    assert "although there is no fault yet; mend that first" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--files", "kernels/limits.py:x"], "kernels/limits.py:x is no folder, .py or .c file"),
        (["--files", "kernels/broken.py"], "kernels/broken.py: invalid syntax"),
        (["--files", "kernels/gone.py"], "kernels/gone.py is no folder, .py or .c file"),
        (["--files", "/"], "/ is no folder, .py or .c file"),
        (["--files", "kernels/limits.py:1"], "nothing to make a fault of in kernels/limits.py:1"),
        (["--files", "kernels/limits.py", "--tests", "tests/gone.py"], "tests/gone.py does not exist"),
        (["--files", "bench/new.py"], "no tests match bench/new.py"),
    ],
)
def test_what_cannot_be_tried_is_an_error(
    checkout: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write(checkout, {"bench/new.py": "x = 1\n", "kernels/broken.py": "return = 1\n"})
    assert mutate.main(arguments, checkout) == 2
    assert message in capsys.readouterr().err


def test_faults_are_listed_without_trying_them(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate.main(["--files", "kernels/limits.py:4", "--list"], checkout) == 0
    assert capsys.readouterr().out == "kernels/limits.py:4: return x < limit -> return x <= limit\n"


def test_a_seed_draws_the_order(checkout: Path) -> None:
    write(checkout, {"kernels/more.py": "\n".join(f"x{number} = {number}" for number in range(20))})
    first, second = (mutate.choose(checkout, ["kernels"], seed=seed) for seed in (1, 2))
    assert first == mutate.choose(checkout, ["kernels"], seed=1)
    assert first != second
    assert set(first) == set(second)


def test_lines_are_those_of_their_file(checkout: Path) -> None:
    lines = [f"kernels/limits.py:{line}" for line in (4, 8)]
    assert {fault.line for fault in mutate.choose(checkout, lines, seed=0)} == {4, 8}
    assert {fault.line for fault in mutate.choose(checkout, [lines[0], "kernels"], seed=0)} == {4, 8}


def test_too_little_time_for_any_fault_is_an_error(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=count(0, 2).__next__))  # two seconds a call
    assert mutate.main(["--files", "kernels", "--seconds", "1"], checkout) == 2
    assert "no fault was tried within 1 seconds" in capsys.readouterr().err


def test_an_interruption_prints_what_was_found_so_far(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def outcomes(_: Campaign, chosen: list[Fault]) -> Iterator[tuple[Fault, str]]:
        yield chosen[0], CAUGHT
        raise KeyboardInterrupt

    monkeypatch.setattr(Campaign, "outcomes", outcomes)
    assert mutate.main(["--files", "kernels"], checkout) == 130
    out, error = capsys.readouterr()
    assert out.splitlines()[-2].split() == ["all", "1", "1", "0"]
    assert out.splitlines()[-1] == "1 of 2 faults tried; interrupted"
    assert error.startswith("[1/2] caught: kernels/limits.py:")


def test_what_the_time_did_not_suffice_for_is_counted(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Campaign, "outcomes", lambda _, chosen: ((fault, CAUGHT) for fault in chosen[:1]))
    assert mutate.main(["--files", "kernels", "--seconds", "1"], checkout) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 faults tried; the time was up"


# --- running tests ----------------------------------------------------------------------------------------------------


def test_what_tests_start_ends_with_them(tmp_path: Path) -> None:
    """Also in a session of its own, where a signal to the process group does not reach it."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(120)
    child = f"import socket; socket.create_connection({server.getsockname()}).recv(1)"
    test = f"""
import subprocess, sys

def test_waits_for_ever():
    subprocess.run([sys.executable, "-c", {child!r}], start_new_session=True)
"""
    sandbox = Sandbox(tmp_path / "sandbox", write(tmp_path / "checkout", {"tests/test_it.py": test}))
    with server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.run, ["tests/test_it.py"], None)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(120)
            sandbox.stop()
            assert connection.recv(1) == b""  # the child is gone
        assert running.result() != 0


def test_tests_end_at_the_time_limit(checkout: Path, tmp_path: Path) -> None:
    write(checkout, {"tests/kernels/test_limits.py": "import threading\n\ndef test_it(): threading.Event().wait()\n"})
    assert Sandbox(tmp_path / "sandbox", checkout).run(["tests/kernels/test_limits.py"], 0.1) is None


def test_python_that_does_not_compile_is_told(checkout: Path, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "sandbox", checkout)
    assert sandbox.compiles("kernels/limits.py")
    write(sandbox.code, {"kernels/limits.py": "return = 1\n"})
    assert not sandbox.compiles("kernels/limits.py")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_that_does_not_compile_is_told(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    sandbox = Sandbox(tmp_path / "sandbox", write(checkout, {"kernels/a.c": "int f(int a) { return a; }\n"}))
    assert sandbox.compiles("kernels/a.c")
    write(sandbox.code, {"kernels/a.c": "int f(int a) { return b; }\n"})
    assert not sandbox.compiles("kernels/a.c")


def test_the_time_of_each_file_is_read_from_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="x" time="1.5"/>'
        '<testcase classname="tests.test_a.TestIt" name="y" time="2"/>'
        '<testcase classname="tests.test_ab" name="z" time="4"/></testsuite></testsuites>'
    )
    seconds = seconds_by_file(report, ["tests/test_ab.py", "tests/test_a.py", "tests/test_none.py"])
    assert seconds == {"tests/test_ab.py": 4, "tests/test_a.py": 3.5, "tests/test_none.py": 0}


def test_tests_are_matched_by_name_and_else_by_package(tmp_path: Path) -> None:
    names = [f"tests/kernels/{name}.py" for name in ("test_lrn", "test_lrn_errors", "test_lrn_pool")]
    build = "tests/kernels/native/test_build.py"
    root = write(tmp_path, dict.fromkeys(["kernels/lrn_pool.py", "tests/test_all.py", build, *names], ""))
    assert matching_tests("kernels/lrn.py", root) == (tuple(names[:2]),)
    assert matching_tests("kernels/lrn_pool.py", root) == ((names[2],),)
    assert matching_tests("kernels/lrn_pool.py", root, wider=True) == ((names[2],), tuple(names[:2]))
    assert matching_tests("kernels/native/native.c", root) == ((build,), tuple(names))
    slow = root / "tests/kernels/test_compiled.py"
    slow.touch()
    assert matching_tests("kernels/native/native.c", root)[-1] == (*names, slow.relative_to(root).as_posix())


# --- places for faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("y = a <= b", "y = a < b"),
        ("y = a is not b", "y = a is b"),
        ("y = a if a < b else b", "y = a if a > b else b"),
        ("y = a and (b or c)", "y = a or (b or c)"),
        ("y = a and (b or c)", "y = (b or c)"),
        ("y = a - 2 * b", "y = (2 * b) - a"),
        ("y = -a", "y = a"),
        ("y += a", "y -= a"),
        ("y = not a", "y = a"),
        ("y = 3", "y = 4"),
        ("y = 3", "y = 2"),
        ("y = 0.75", "y = (2 * 0.75)"),
        ("y = True", "y = False"),
        ("y = max(a, b)", "y = min(a, b)"),
        ("y = torch.minimum(a, b)", "y = torch.maximum(a, b)"),
        ("y = [*range(n)]", "y = [*range(n - 1)]"),
        ("y = [*range(a, n)]", "y = [*range(a, n - 1)]"),
        ("y = a[:n]", "y = a[:n - 1]"),
        ("y = a[n:]", "y = a[n + 1:]"),
        ("y = f(a, b)", "y = f(b, a)"),
        ("y = f(p=a, q=b)", "y = f(p=b, q=a)"),
        ("a, b = y", "b, a = y"),
        ("y = grad_height, grad_width", "y = grad_width, grad_width"),
        ("y = [a for a in y if a.b]", "y = [a for a in y if True]"),
        ("if a: y()", "if not a: y()"),
        ("if a: y()", "if a: pass"),
        ("if a: raise ValueError(a)", "if a: pass"),
        ("for a in y: continue", "for a in y: pass"),
        ("y.a = 1", "pass"),
        ("with lock: y()", "with __import__('contextlib').nullcontext(): y()"),
        ("y = 'é' if (a) < b else c", "y = 'é' if (a) <= b else c"),
    ],
)
def test_python_patterns(text: str, wanted: str) -> None:
    found = [fault.applied(text) for fault in faults("file.py", text, python_edits(text))]
    assert wanted in found
    assert text not in found


def test_python_that_only_tells_something_has_no_faults() -> None:
    text = '''
"""1 < 2"""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from a import b  # 1 < 2

_PAUSE_SECONDS = 2


@decorated(1, True)
class A(B[1]):
    """1 < 2"""

    x: Literal[1, 2]

    def f(self, x: Literal[1] | None) -> Literal[2]:
        """1 < 2"""
        print(f"{1 + 2}", 3)
        assert isinstance(x, (int, float)), "no" * 2
        text = f"{x + 1:{2}}"
        return zip(x, text, strict=True)


if __name__ == "__main__":
    f(1)
'''
    assert faults("file.py", text, python_edits(text)) == []


@pytest.mark.parametrize("path", ["kernels/lrn.py", "fastalex/training/trainer.py"])
def test_faults_of_our_own_code_are_python(path: str) -> None:
    text = (mutate.ROOT / path).read_text()
    for fault in mutate.choose(mutate.ROOT, [path], seed=3)[:30]:
        ast.parse(fault.applied(text))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("y = a < b;", "y = a <= b;"),
        ("y = a < b ? a : b;", "y = a > b ? a : b;"),
        ("y = a + b;", "y = a - b;"),
        ("y = a % b;", "y = a / b;"),
        ("y += a;", "y -= a;"),
        ("y = a && b;", "y = a || b;"),
        ("y = 8;", "y = 7;"),
        ("y = 0.5f;", "y = (2 * 0.5f);"),
        ("y = !a;", "y = a;"),
        ("y = height * width;", "y = width * width;"),
        ("if (f(a) < b) y();", "if (0) y();"),
        ("if (f(a) < b) y();", "if (1) y();"),
        ("y = f(a, b);", "y = f(b, a);"),
        ("    memset(a, 0, n);", "    ;"),
        ("    y[a] += b;", "    ;"),
    ],
)
def test_c_patterns(text: str, wanted: str) -> None:
    found = [fault.applied(text) for fault in faults("file.c", text, c_edits(text))]
    assert wanted in found
    assert text not in found


def test_names_in_c_are_mistaken_for_others_of_the_same_function() -> None:
    text = "int f(int height)\n{\n    return height;\n}\nint g(int width, int row, int column)\n{\n    return row;\n}\n"
    found = {fault.change for fault in faults("file.c", text, c_edits(text)) if fault.line != 5}
    assert found == {"return row; -> return column;"}


def test_c_outside_the_code_has_no_faults() -> None:
    text = """
#include <math.h>
#define A 1 + \\
    2
/* 1 < 2
   a + b */
// a + b
static char *text = "1 + 2 /* ", mark = '<';
float *restrict values;
"""
    assert faults("file.c", text, c_edits(text)) == []


def test_the_list_of_equivalent_faults_is_up_to_date() -> None:
    """Each of them is still a fault that would be tried; where the code has changed, the list must, too."""
    lines = (mutate.ROOT / mutate.EQUIVALENT).read_text().splitlines()
    entries = {line for line in lines if line and not line.startswith("#")}
    for path in sorted({entry.partition(":")[0] for entry in entries}):
        entries -= {f"{path}: {fault.change}" for fault in mutate.faults_of(mutate.ROOT, path)}
    assert entries == set()
