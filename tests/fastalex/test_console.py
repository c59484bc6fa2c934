"""What commands print."""

from fastalex.console import batch_progress, command, console, duration, name_value_table, print_whole


def test_text_is_printed_as_it_is(capsys):
    name = "images/[bold]cats[/bold]/:smile:/" + "a b " * 50 + "42"
    console().print(name)
    assert capsys.readouterr().out == name + "\n"


def test_tables_keep_brackets_and_whole_words(capsys):
    path = "runs/[2012]/" + "x" * 200
    print_whole(console(), name_value_table("what [this] is", {"path": path}))
    out = capsys.readouterr().out
    assert "what [this] is" in out
    assert path in out


def test_no_progress_bar_without_a_terminal(capsys):
    with batch_progress("reading", 2, shown=True) as advance:
        advance()
    assert capsys.readouterr().out == ""


def test_durations():
    assert [duration(seconds) for seconds in (5, 123.4, 3723)] == ["0:05", "2:03", "1:02:03"]


def test_a_command_to_copy():
    assert command("fastalex.train", "--resume", "my run").endswith(" -m fastalex.train --resume 'my run'")
