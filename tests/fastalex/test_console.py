"""What commands print."""

from rich.table import Table

from fastalex.console import batch_progress, console, data_size, duration, print_rows, print_whole


def test_text_is_printed_as_it_is(capsys):
    name = "images/[bold]cats[/bold]/:smile:/" + "a b " * 50 + "42"
    console().print(name)
    assert capsys.readouterr().out == name + "\n"


def test_tables_keep_brackets_and_whole_words(capsys):
    path = "runs/[2012]/" + "x" * 200
    table = Table(title="what [this] is")
    table.add_column("path", overflow="fold")
    table.add_row(path)
    print_whole(console(), table)
    out = capsys.readouterr().out
    assert "what [this] is" in out
    assert path in out


def test_no_progress_bar_without_a_terminal(capsys):
    with batch_progress("reading", 2, shown=True) as advance:
        advance()
    assert capsys.readouterr().out == ""


def test_durations():
    assert [duration(seconds) for seconds in (5, 123.4, 3723)] == ["0:05", "2:03", "1:02:03"]


def test_sizes():
    assert [data_size(count) for count in (0, 1023, 14_688, 2**20, 5e9, 3e12)] == [
        "0 B", "1023 B", "14.3 KiB", "1.0 MiB", "4.7 GiB", "2,794.0 GiB",
    ]  # fmt: skip


def test_rows_are_lines_that_are_never_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "runs/20261123-082511-a data set with [brackets]-krizhevsky/best.safetensors"
    print_rows(console(), {"weights": path, "top-1 error": "5 %"})
    assert capsys.readouterr().out == f"weights      {path}\ntop-1 error  5 %\n"
