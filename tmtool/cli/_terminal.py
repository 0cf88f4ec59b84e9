"""Pictures in the terminal, where it says that it shows them: by kitty's protocol, or as sixels (iTerm2, foot, WezTerm, xterm, ...)."""

import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

_log = logging.getLogger("tmtool")

_PATIENCE_S = 1.0
"""How long a terminal is waited for."""
_PROMPT_S = 0.09
"""Within this it has to answer: textual-image waits 0.1 s for each of its questions, and later answers would be typed at the prompt."""
_MOST_COLUMNS = 256
"""Kitty's protocol numbers fewer than 300."""


def viewer() -> Callable[[Path], None] | None:
    """Return what shows a PNG in the terminal; None where standard output is none, or the terminal does not say that it can."""
    if (streams := _terminal()) is None:
        return None
    if find_spec("textual_image") is None:
        _log.debug("Terminals that can do so show pictures with: pip install 'tmtool[terminal]'.")
        return None
    seconds = _seconds_to_answer(*streams)
    if seconds is None or seconds > _PROMPT_S:
        _log.debug(
            "The terminal %s, so it is not asked for pictures.", "is silent" if seconds is None else "is far away"
        )
        return None
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # it warns where it guesses the size of a character
    from textual_image.renderable import Image, SixelImage, TGPImage  # which asks the terminal

    if Image not in (SixelImage, TGPImage):
        _log.debug("The terminal does not say that it shows pictures.")
        return None
    return partial(_show, streams[1], Image)


def _terminal() -> tuple[TextIO, TextIO] | None:
    """Return the terminal's input and output; None where there is none that we may ask, or that would show what we write."""
    stdin, stdout = sys.__stdin__, sys.__stdout__
    if os.name != "posix" or os.environ.get("TERM") in (None, "dumb", "linux") or not sys.stdout.isatty():
        return None
    if stdin is None or stdout is None or not (stdin.isatty() and stdout.isatty()):
        return None
    try:
        foreground = os.tcgetpgrp(stdin.fileno()) == os.getpgrp()  # asked from the background, it would stop us
    except OSError:  # it is another session's
        return None
    return (stdin, stdout) if foreground and stdout.encoding.lower() in ("utf-8", "utf8") else None


def _seconds_to_answer(stdin: TextIO, stdout: TextIO) -> float | None:
    """Return how long the terminal takes to say what it is, which nearly all do; None if it is silent for a second.

    What was typed meanwhile is lost; the terminal is as before.
    """
    import termios
    import tty

    fd, asked, said = stdin.fileno(), time.monotonic(), b""
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)  # the answer is not echoed, and no line has to end for it to be read
        os.write(stdout.fileno(), b"\x1b[c")
        while not re.search(rb"\x1b\[\?[\d;]*c$", said):
            left = asked + _PATIENCE_S - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0] or not (byte := os.read(fd, 1)):
                return None
            said += byte
        return time.monotonic() - asked
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _show(stdout: TextIO, kind: Callable[..., Any], path: Path) -> None:
    """Write a picture to the terminal, as large as fits."""
    from rich.console import Console

    columns, lines = os.get_terminal_size(stdout.fileno())
    Console(
        file=stdout,
        force_terminal=True,
        color_system="truecolor",  # kitty's protocol keeps numbers in colours
        no_color=False,
        width=min(max(columns, 1), _MOST_COLUMNS),
        height=max(lines - 2, 1),
    ).print(kind(path, "auto", "auto"))
