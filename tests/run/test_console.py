"""The console: plain lines for files and pipes, bars on a terminal, never broken by a width, an encoding or a reader who left."""

import io
import re
from pathlib import Path

import pytest

from xwin.run.console import LINES, Console, Pace, clock, number


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain() -> io.StringIO:
    return io.StringIO()


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def visible(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def test_each_fact_is_one_plain_line_without_a_terminal(plain: io.StringIO) -> None:
    console = Console(stream=plain)
    console.stage("sft2", "sft", "80 steps from [base]")
    console.skipped("rm", "nothing changed")
    console.finished("sft2", 151.2, {"loss": 1.23456, "accuracy": 0.5})
    console.message("[red]as it is[/red] :smile:")
    assert plain.getvalue().splitlines() == [
        "sft2  (sft) 80 steps from [base]",
        "rm  skipped: nothing changed",
        "sft2  done in 0:02:31  loss 1.235  accuracy 0.5",
        "[red]as it is[/red] :smile:",
    ]


def test_with_json_stdout_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).message("hello")
    Console().message("world")
    out, err = capsys.readouterr()
    assert (out, err) == ("world\n", "hello\n")


def test_a_step_is_a_line_with_counter_values_rate_and_time_left(plain: io.StringIO) -> None:
    with Console(stream=plain).progress("sft", 80, "step", done=11) as progress:
        progress.advance(tokens=700, loss=1.2345)
    assert re.fullmatch(r"sft  step 12/80  loss 1\.234  \d+ tok/s  eta \d+:\d\d:\d\d\n", plain.getvalue())


@pytest.mark.parametrize("total", [1, 3, 49, 50, 80, 1000, 12345])
def test_a_long_stage_prints_a_few_lines_with_the_first_and_the_last(plain: io.StringIO, total: int) -> None:
    with Console(stream=plain).progress("sft", total, "step") as progress:
        for _ in range(total):
            progress.advance()
    counters = [line.split()[2] for line in plain.getvalue().splitlines()]
    assert counters[0] == f"1/{total}"
    assert counters[-1] == f"{total}/{total}"
    assert min(total, 40) <= len(counters) <= LINES
    assert len(set(counters)) == len(counters)


def test_the_last_line_is_printed_when_a_stage_stops_early(plain: io.StringIO) -> None:
    console = Console(stream=plain)
    with pytest.raises(RuntimeError), console.progress("sft", 1000, "step") as progress:
        for step in range(103):
            progress.advance(loss=float(step))
        raise RuntimeError
    assert plain.getvalue().splitlines()[-1].startswith("sft  step 103/1000  loss 102")


def test_units_that_come_in_blocks_are_counted(plain: io.StringIO) -> None:
    with Console(stream=plain).progress("pairs", 64, "answer") as progress:
        for _ in range(4):
            progress.advance(16)
    assert [line.split()[2] for line in plain.getvalue().splitlines()] == ["16/64", "32/64", "48/64", "64/64"]


def test_rates_count_from_where_this_process_began() -> None:
    clock_now = [100.0]
    pace = Pace(100, 40, now=lambda: clock_now[0])
    assert pace.rate() == ""
    clock_now[0] = 110.0
    pace.add(5, 3500)
    assert pace.rate() == "350 tok/s  eta 0:01:50"
    pace.add(55, 0)
    assert pace.rate() == "350 tok/s"


def test_a_plain_table_is_aligned_with_numbers_on_the_right(plain: io.StringIO) -> None:
    rows = [["base", "0.31", "0.28 - 0.34", ""], ["sft", "0.512", "0.48 - 0.55", "<0.001"], ["ppo", "-", "", "-0.2"]]
    Console(stream=plain).table("accuracy [test]", ["model", "value", "95 % CI", "p"], rows)
    assert plain.getvalue().splitlines() == [
        "accuracy [test]",
        "model  value      95 % CI       p",
        "-----  -----  -----------  ------",
        "base    0.31  0.28 - 0.34",
        "sft    0.512  0.48 - 0.55  <0.001",
        "ppo        -                 -0.2",
    ]


def test_a_table_without_rows_or_title_has_its_header(plain: io.StringIO) -> None:
    Console(stream=plain).table("", ["model", "n"], [])
    assert plain.getvalue() == "model  n\n-----  -\n"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_nothing_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = terminal(monkeypatch, width)
    console = Console(stream=stream)
    assert console.terminal
    console.stage("sft", "sft", "a long text " * 20)
    with console.progress("sft", 3000, "step") as progress:
        progress.advance(tokens=100, loss=1.0, **{f"metric{i}": 1.0 for i in range(20)})
        console.message("meanwhile")
    console.table("title", ["model", "value"], [["a-very-long-name-of-a-model" * 4, "0.5"]])
    console.finished("sft", 1.0, {})
    lines = re.split(r"[\r\n]", visible(stream))
    assert max(len(line) for line in lines) <= width
    assert any("meanwhile" in line for line in lines)


def test_a_terminal_shows_stage_counter_time_left_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch, 100)
    with Console(stream=stream).progress("sft[x]", 80, "step", done=11) as progress:
        progress.advance(tokens=100, loss=1.2345)
    last = [line for line in re.split(r"[\r\n]", visible(stream)) if "loss" in line][-1]
    assert re.search(r"sft\[x\] .* 12/80 step \d+ tok/s  eta \d+:\d\d:\d\d  loss 1\.234", last)


def test_brackets_in_text_are_not_markup_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch, 100)
    console = Console(stream=stream)
    console.message("[red]x[/] [/nothing]")
    console.table("[t]", ["[a]"], [["[b]"]])
    assert all(text in visible(stream) for text in ("[red]x[/] [/nothing]", "[t]", "[a]", "[b]"))


def test_text_that_the_stream_cannot_encode_does_not_stop_the_run(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        Console(stream=stream).message("naïve → 日本")
    assert (tmp_path / "log").read_text() == "na?ve ? ??\n"


def test_a_reader_who_leaves_does_not_stop_the_run() -> None:
    class Left(io.StringIO):
        writes = 0

        def write(self, text: str, /) -> int:
            Left.writes += 1
            raise BrokenPipeError

    console = Console(stream=Left())
    console.message("one")
    console.message("two")
    assert Left.writes == 1


@pytest.mark.parametrize(
    ("value", "text"), [(1.23456, "1.235"), (0.012345, "0.01235"), (24310.4, "24310"), (2e-5, "2e-05"), (3.0, "3"), (float("nan"), "nan")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (151, "0:02:31"), (360000, "100:00:00")])
def test_clocks_count_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text
