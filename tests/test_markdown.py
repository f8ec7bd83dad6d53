"""Pieces of Markdown, as its reader sees them."""

from __future__ import annotations

from lit_eve.markdown import code_block, table


def test_a_table_aligns_numbers_to_the_right():
    assert table(("arm", "loss"), [("with", 0.5)]) == "| arm | loss |\n| --- | ---: |\n| with | 0.5 |"
    assert table(("loss", "arm"), [], words=["arm"]) == "| loss | arm |\n| ---: | --- |"


def test_a_cell_stays_a_cell():
    assert table(["question"], [["which is it,\n`a | b`?"]]).splitlines()[2] == r"| which is it, `a \| b`? |"


def test_a_code_block_ends_where_the_text_ends():
    assert code_block("\n  a\nb\n") == "```text\n  a\nb\n```"
    assert code_block("```\nx\n````").splitlines()[::4] == ["`````text", "`````"]
