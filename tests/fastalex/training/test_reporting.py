"""Tables as they are printed."""

import io

from rich.console import Console

from fastalex.console import name_value_table, print_whole


def test_a_path_in_a_table_is_not_broken():
    path = "runs/20261123-082511-a-data-set-with-a-long-name-krizhevsky/best.safetensors"
    for width, lines in ((40, 6), (200, 5)):  # two paths in one row: one below the other where there is little room
        out = io.StringIO()
        console = Console(file=out, width=width, soft_wrap=True)
        print_whole(console, name_value_table("results", {"epochs": "5", "weights": f"{path}, {path}"}))
        assert out.getvalue().count(path) == 2
        assert len(out.getvalue().splitlines()) == lines
