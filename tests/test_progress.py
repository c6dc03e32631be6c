"""A bar is one line in a terminal, a widget in a notebook, text in a log file; and it leaves nothing behind."""

import contextlib
import hashlib
import io
import os
import re
import struct
import sys
import threading
import time
import warnings

import pytest
from click.testing import CliRunner

import advtrain as at
from advtrain import cli_data, cli_diagnose, cli_judge, downloads, progress
from advtrain.cli import main
from advtrain.errors import AdvtrainWarning
from advtrain.progress import progress_bar


@pytest.fixture(scope="module")
def problem():
    data = at.load_data("digits")
    return at.build_model("small-cnn", data, width=4), data.test[:40], at.Threat("linf", 0.1)


QUICK = at.Protocol(steps=2, restarts=1)


class Terminal:
    """A terminal of so many columns: what was written to it, and the lines that it shows."""

    def __init__(self, columns):
        pty = pytest.importorskip("pty")
        self.outside, inside = pty.openpty()
        self.file, self.written = os.fdopen(inside, "w"), b""
        self.resize(columns)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def resize(self, columns):
        import fcntl
        import termios

        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def _read(self):
        try:
            while part := os.read(self.outside, 4096):
                self.written += part
        except OSError:  # the other side is closed
            pass

    def close(self):
        self.file.close()
        self.reader.join(5)
        os.close(self.outside)

    def lines(self):
        """The screen, after carriage returns and moves upwards, without what was wiped."""
        screen, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", self.written.decode()):
            if token == "\x1b[A":
                row -= 1
            elif token == "\r":
                column = 0
            elif token == "\n":
                row += 1
                screen += [""] * (row == len(screen))
            else:
                line = screen[row].ljust(column)
                screen[row] = line[:column] + token + line[column + len(token) :]
                column += len(token)
        return [line.rstrip() for line in screen]


@pytest.fixture
def terminal():
    made = Terminal(80)
    yield made
    if not made.file.closed:
        made.close()


def test_in_a_terminal_it_is_one_line_which_is_wiped_at_the_end(terminal, problem, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.file)
    at.evaluate(*problem, protocol=QUICK)  # which shows a bar without being told
    terminal.close()
    assert "\revaluate pgd:" in terminal.written.decode() and terminal.lines() == [""]


def test_it_fits_a_terminal_whose_width_changes(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with progress_bar(None, total=3, desc="x" * 30) as bar:
        bar.refresh()
        terminal.resize(50)
        bar.refresh()
    terminal.close()
    widths = [len(line) for line in re.split(r"[\r\n]+", terminal.written.decode()) if line.strip()]
    assert 70 < widths[0] <= 80 and 40 < widths[-1] <= 50, widths


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_leaves_no_bar(terminal, monkeypatch, error):
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with pytest.raises(error), progress_bar(None, total=3, desc="work") as bar:
        bar.update()
        raise error
    print("what comes next", file=terminal.file, flush=True)
    terminal.close()
    assert "work:" in terminal.written.decode() and terminal.lines() == ["what comes next", ""]


def test_warnings_and_prints_are_lines_of_their_own(terminal, monkeypatch):
    """The bar is drawn anew below them; in the end it is gone, and the function that shows warnings is what it was."""
    monkeypatch.setattr(sys, "stderr", terminal.file)

    def show(message, *_, **__):
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def told(run):
        warnings.warn(f"in epoch {len(run.history)}", AdvtrainWarning, stacklevel=1)
        print("so far, so good", file=sys.stderr, flush=True)

    class Warns(at.defenses.Standard):
        def __call__(self, model, batch, progress):
            if progress == 0.5:
                warnings.warn("half-way", AdvtrainWarning, stacklevel=1)
            return super().__call__(model, batch, progress)

    data = at.load_data("digits")
    model = at.build_model("small-cnn", data, width=4)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        at.fit(model, Warns(at.Threat("linf", 0.1)), data, epochs=2, val_steps=1, device="cpu", callbacks=[told])
        assert warnings.showwarning is show
    terminal.close()
    said = "warning: in epoch 1", "so far, so good", "warning: half-way", "warning: in epoch 2", "so far, so good", ""
    assert terminal.lines() == list(said) and "standard: 100%" in terminal.written.decode()


class Shell:
    """What IPython hands out in the kernel of a notebook."""

    kernel = object()


class Place:
    """Where a notebook shows something, and with what it is replaced."""

    shown, replaced = None, None

    def update(self, data, raw):
        self.replaced = data


@pytest.fixture
def notebook(monkeypatch):
    """Stands in for the kernel of a notebook; yields the places in which something is displayed."""
    display = pytest.importorskip("IPython.display")
    places = []

    def shows(thing, display_id):
        places.append(Place())
        places[-1].shown = thing
        return places[-1]

    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", Shell)
    monkeypatch.setattr(display, "display", shows)
    progress._widget.cache_clear()
    yield places
    progress._widget.cache_clear()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_in_a_notebook_it_is_a_widget_of_which_nothing_stays(notebook, capsys, error):
    pytest.importorskip("ipywidgets")
    with contextlib.suppress(KeyboardInterrupt), progress_bar(None, total=0, desc="autoattack") as bar:
        bar.total = 7  # found out later
        bar.update(3)
        bar.refresh()
        label, line, figures = notebook[0].shown.children
        assert (line.value, line.max) == (3, 7) and "autoattack" in label.value and "3/7" in figures.value
        if error:
            raise error
    (place,) = notebook
    assert place.replaced == {"text/plain": ""} and line.bar_style != "danger" and place.shown.comm is None
    assert "".join(capsys.readouterr()) == ""


def test_in_a_notebook_without_ipywidgets_it_is_a_line_of_text(notebook, monkeypatch):
    import tqdm.notebook

    monkeypatch.setattr(tqdm.notebook, "IProgress", None)
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(None, total=3, desc="work") as bar:  # a warning, such as tqdm's, would be an error here
        bar.update(3)
    assert log.getvalue().startswith("\rwork:   0%") and not notebook and "\n" not in log.getvalue()


class Log(io.StringIO):
    """What stderr is when a program's output goes to a file."""

    def isatty(self):
        return False


@pytest.mark.parametrize("show", [None, True, False])
def test_a_log_file_gets_lines_if_they_are_wanted_and_no_carriage_return(monkeypatch, problem, show):
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    at.evaluate(*problem, protocol=QUICK, progress=show)
    if show:
        assert re.fullmatch(r"evaluate pgd: 100% 120/120 \[00:\d\d<00:00, .*img/s\]\n", log.getvalue())
    else:
        assert log.getvalue() == ""


def test_a_log_file_gets_a_line_every_ten_seconds(monkeypatch):
    log, now = Log(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress_bar(True, total=60, unit="step", desc="fgsm") as bar:
        for _ in range(35):
            now[0] += 1
            bar.update()
        bar.set_postfix({"loss": "0.5"})
        bar.refresh()
    lines = log.getvalue().splitlines()
    done = [line[: line.index(" [")] for line in lines]
    assert done == [f"fgsm:  {part}" for part in ("17% 10/60", "33% 20/60", "50% 30/60", "58% 35/60")]
    assert lines[-1].endswith("loss=0.5]") and "\r" not in log.getvalue()


def test_a_program_without_a_stderr_shows_nothing(monkeypatch, problem):
    monkeypatch.setattr(sys, "stderr", None)
    at.evaluate(*problem, protocol=QUICK)


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "data"])
def test_commands_can_be_told_to_show_a_bar_or_none(tmp_path, problem, monkeypatch, command):
    model, _, threat = problem
    data, told = at.load_data("digits"), []
    at.fit(model, at.defenses.Standard(threat), data, epochs=1, validate_every=0, out=tmp_path / "x")
    for room, name in ((cli_judge, "evaluate"), (cli_diagnose, "diagnose"), (cli_data.data_room, "fetch")):
        own = getattr(room, name)

        def noted(*arguments, own=own, name=name, progress, **options):
            told.append(progress)
            return own(*arguments, progress=progress, **options) if name == "evaluate" else name

        monkeypatch.setattr(room, name, noted)
    rest = {"evaluate": ["--limit", "4", "--steps", "1", "--restarts", "1"], "data": ["fetch", "mnist"]}
    for flags in ([], ["--progress"], ["--no-progress"]):
        arguments = [*rest["data"]] if command == "data" else [str(tmp_path / "x"), *rest.get(command, [])]
        assert CliRunner().invoke(main, [command, *arguments, *flags], catch_exceptions=False).exit_code == 0
    assert told == [None, True, False]


def test_downloads_show_this_bar_and_no_other(monkeypatch, mirror):
    folder, address, _ = mirror
    (folder / "file").write_bytes(bytes(100_000))
    remote = downloads.Remote(f"{address}file", 100_000, hashlib.sha256(bytes(100_000)).hexdigest())
    for show, wanted in ((False, r""), (True, r"file: 100% 100k/100k .*B/s\]\n")):
        log = Log()
        monkeypatch.setattr(sys, "stderr", log)
        downloads.download(remote, folder / "copy", progress=show)
        assert re.fullmatch(wanted, log.getvalue()), log.getvalue()
        assert (folder / "copy").stat().st_size == 100_000


CELLS = """
import sys
import advtrain as at

data = at.load_data("digits")
model = at.build_model("small-cnn", data, width=4)
run = at.fit(model, at.defenses.Standard(at.Threat("linf", 0.1)), data, epochs=1, validate_every=0)
"""


@pytest.mark.slow
def test_in_a_real_kernel_a_stored_notebook_has_no_trace_of_the_bar():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    note = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    client = nbclient.NotebookClient(note, timeout=300, kernel_name="python3")
    client.execute()
    widget = "application/vnd.jupyter.widget-view+json"
    (output,) = note.cells[0].outputs
    assert output.output_type == "display_data" and output.data == {"text/plain": ""} and widget not in output.data
    assert client.widget_state, "a widget was shown meanwhile"
