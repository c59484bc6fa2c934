"""Short names, links, and facts that a run may lack."""

from pathlib import Path
from urllib.parse import unquote

from fastalex.reports.runs import link, short_names


def test_runs_are_named_by_their_folders_or_by_what_tells_them_apart(tmp_path):
    assert short_names([tmp_path / "a", tmp_path / "x/b"]) == ["a", "b"]
    assert short_names([tmp_path / "x/seed-0", tmp_path / "y/z/seed-0"]) == ["x/seed-0", "y/z/seed-0"]
    assert short_names([Path()]) == [Path().resolve().name]


def test_links_are_relative_and_quoted(tmp_path):
    (tmp_path / "pages").mkdir()
    target = tmp_path / "runs" / "50 %#1?" / "config.json"
    found = link(target, tmp_path / "pages" / "report.html")
    assert found == "../runs/50%20%25%231%3F/config.json"
    assert (tmp_path / "pages" / unquote(found)).resolve() == target
