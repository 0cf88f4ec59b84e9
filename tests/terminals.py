"""Terminals of several kinds for tests: each answers what it is asked on a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass

QUESTION = re.compile(rb"(?P<attributes>\x1b\[c)|\x1b_Gi=(?P<kitty>\d+),[^;]*a=q[^;]*;AAAA\x1b\\|(?P<cell>\x1b\[16t)")


@dataclass(frozen=True)
class Terminal:
    """What a terminal says of its attributes (nothing: it never answers), whether it takes kitty's pictures, how long it takes.

    `pixels` is its size, width and height; 0, 0 where it does not tell.
    """

    attributes: bytes = b""
    kitty: bool = False
    seconds: float = 0.0
    pixels: tuple[int, int] = (800, 480)

    def answer(self, question: re.Match[bytes]) -> bytes:
        """Return what it answers."""
        if question["kitty"]:
            return b"\x1b_Gi=" + question["kitty"] + b";OK\x1b\\" if self.kitty else b""
        return self.attributes if question["attributes"] else b"\x1b[6;20;10t"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, what it wrote, whether the terminal's mode is as before, and what a shell would read next."""

    status: int
    said: bytes
    as_before: bool
    typed: bytes


KITTY = Terminal(b"\x1b[?62;c", kitty=True)
ITERM2 = Terminal(b"\x1b[?62;4c")
XTERM = Terminal(b"\x1b[?63;1;2;4;6;9;15;22c", pixels=(0, 0))
PLAIN = Terminal(b"\x1b[?1;2c")
SILENT = Terminal()
FAR = Terminal(b"\x1b[?62;4c", seconds=0.3)


def run(terminal: Terminal, command: Sequence[str], **env: str) -> Ended:
    """Run a command in the foreground of a terminal of 80 x 24 characters."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, *terminal.pixels))
    before = termios.tcgetattr(theirs)
    child = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        env=os.environ | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    said = unanswered = b""
    while select.select([ours], [], [], 0.02)[0] or child.poll() is None:
        if not select.select([ours], [], [], 0)[0]:
            continue
        fresh = os.read(ours, 65_536)
        said, unanswered = said + fresh, unanswered + fresh
        while question := QUESTION.search(unanswered):
            unanswered = unanswered[question.end() :]
            if terminal.attributes:
                time.sleep(terminal.seconds)
                os.write(ours, terminal.answer(question))
    after = termios.tcgetattr(theirs)
    termios.tcsetattr(theirs, termios.TCSANOW, [*after[:3], after[3] & ~termios.ICANON, *after[4:]])
    typed = os.read(theirs, 4096) if select.select([theirs], [], [], 0)[0] else b""
    os.close(ours)
    os.close(theirs)
    return Ended(child.wait(), said, before == after, typed)
