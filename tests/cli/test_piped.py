"""Progress in a pipe is lines, and in a terminal a bar for each work."""

import os
import pty
import subprocess
import sys
import termios

import pytest
from conftest import tiny_model
from transformers.utils import logging as transformers_logging

from hf_mlp_fusion.cli import piped

COMMAND = [sys.executable, "-m", "hf_mlp_fusion.cli"]


@pytest.fixture
def stock(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    (tmp_path / "stock" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "texts.txt").write_text("hello hello hello hello\n" * 99)
    return tmp_path


def test_a_pipe_gets_no_escapes(stock):
    arguments = ["fuse", "stock", "fused", "--width", "16", "--texts", "texts.txt"]
    run = subprocess.run([*COMMAND, *arguments], capture_output=True, cwd=stock)
    assert run.returncode == 0, run.stderr
    for written in (run.stdout, run.stderr):
        assert b"\r" not in written
        assert b"\x1b" not in written
    assert b"Fusing" not in run.stderr  # it took no ten seconds
    assert "64 → 16" in run.stdout.decode()


def test_a_terminal_gets_one_bar_for_the_weights_and_one_for_fusing(stock):
    """Not one within the other, which moved the cursor up and down."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    run = subprocess.Popen(
        [*COMMAND, "fuse", "stock", "fused", "--width", "16", "--texts", "texts.txt"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=stock,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    run.communicate()
    assert run.returncode == 0, shown
    assert b"\x1b[A" not in shown
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    for work in ("Loading weights", "Fusing"):
        assert len([line for line in lines if work in line]) == 1, lines


def test_lines_come_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(piped.time, "monotonic", lambda: clock[0])
    with piped.lines_where_piped(), transformers_logging.tqdm(total=4, desc="Works", mininterval=0) as bar:
        for seconds in (1, 9, 10, 20):
            clock[0] = seconds
            bar.update()
    assert [line.split("%")[0] for line in capsys.readouterr().err.splitlines()] == ["Works:  75", "Works: 100"]
    with transformers_logging.tqdm(total=1, desc="After", mininterval=0) as bar:
        bar.update()
    assert "\r" in capsys.readouterr().err
