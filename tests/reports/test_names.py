"""Names of any kind in reports and on the terminal."""

import os

import pytest
from rich.console import Console

from ser_fast.reports import figures, html, terminal

NAME = os.fsdecode(b"<b>[red]$x$\x1b[31m\n\xd6.wav")
SHOWN = r"<b>[red]$x$\x1b[31m\n\udcd6.wav"


@pytest.mark.parametrize("width", [40, 10_000])
def test_terminal_prints_names_literally(width, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", Console(width=width, force_terminal=True))
    terminal.say(NAME)
    terminal.print_table(NAME, [NAME, "b"], [[NAME, "1"]])
    shown = capsys.readouterr().out
    assert shown.count("[red]$x$") == 4 and shown.count(r"\x1b[31m") == 4 and "\x1b[31m" not in shown


@pytest.mark.parametrize("part", [html.note, html.heading, lambda text: html.table([text], [[text, 1.25]])])
def test_page_shows_names_literally(part, tmp_path):
    page = html.write(tmp_path / "a.html", NAME, [part(NAME)]).read_text()
    inside = SHOWN.replace("<b>", "&lt;b&gt;")
    assert page.count(inside) >= 3 and "<b>" not in page and "\x1b" not in page


def test_shortened_keeps_the_end_of_a_path():
    assert figures.shortened("a/b/c.wav", 9) == "a/b/c.wav"
    assert figures.shortened("far/a/b/c.wav", 9) == "…/b/c.wav"
