"""Interactive shells on a pseudo-terminal, in which keys are pressed: what a line is after the tab key, and what was offered."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

_READ_LINE = "\x18b"  # control-x b: writes the line into a file and empties it
_OFFER = "\x18o"  # control-x o, of fish: writes what would be offered into another
_TIMEOUT = 60.0  # seconds for a key; a busy machine is slow, a shell that hangs is one that fails

_SET_UP = {
    "bash": r"""
bind 'set completion-query-items 0'
bind 'set page-completions off'
bind 'set enable-bracketed-paste off'
bind -x '"\C-xb": printf "%s\n" "$READLINE_LINE" > "$DIRECTORY/line"; READLINE_LINE=""; READLINE_POINT=0'
_offer() { "$_completes" "$@"; printf '%s\n' "${COMPREPLY[@]}" > "$DIRECTORY/offered"; }
look_at() {
  local how=$(complete -p "$1")
  _completes=$(sed 's/.*-F \([^ ]*\).*/\1/' <<< "$how")
  eval "${how/-F $_completes/-F _offer}"
}
""",
    # compadd is what everything is offered by: a stand-in also writes down what matches.
    "zsh": r"""
autoload -Uz compinit && compinit -u -D
LISTMAX=1000000
compadd() {
  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
    local -a offered
    builtin compadd -O offered "$@"
    print -rl -- "${offered[@]}" >> "$DIRECTORY/offered"
  fi
  builtin compadd "$@"
}
_read_line() { print -r -- "$BUFFER" > "$DIRECTORY/line"; BUFFER='' }
zle -N _read_line
bindkey '^Xb' _read_line
look_at() { : }
""",
    "fish": r"""
function fish_prompt; echo -n '> '; end
bind \cxb 'commandline > $DIRECTORY/line; commandline -r ""'
bind \cxo 'complete -C (commandline) | string split -f 1 \t > $DIRECTORY/offered'
function look_at; end
""",
}
_ALONE = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}
"""Options by which a shell reads nothing of this user's."""

_AT_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes a program whose terminal is its standard input, as fish asks for (`preexec_fn` would be unsafe beside threads)."""


class Shell:
    """A shell in which somebody sits: `directory` is where it is, `script` what it reads at its start.

    `look_at NAME` at the end of the script lets `offered` see what is offered for that command.
    """

    def __init__(self, name: str, directory: Path, script: str) -> None:
        self._name = name
        self._at = directory.parent / f"{directory.name}-{name}"
        self._at.mkdir()
        start = self._at / "start"
        start.write_text(f"{_SET_UP[name]}\n{script}\n")
        self._terminal, theirs = pty.openpty()
        home = {"HOME": str(self._at), "XDG_CONFIG_HOME": str(self._at), "XDG_DATA_HOME": str(self._at)}
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb" if name != "fish" else "xterm", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, name, *_ALONE[name]], stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory,
            env={**environment, **home, "DIRECTORY": str(self._at)},
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""
        self._press(f"source {start}\r")

    def after_tab(self, typed: str) -> str:
        """What a line is after it was typed and the tab key was pressed."""
        return self._line_after(f"{typed}\t")

    def offered(self, typed: str) -> list[str]:
        """What the shell offers to complete it with."""
        offered = self._at / "offered"
        offered.unlink(missing_ok=True)
        self._line_after(typed + (_OFFER if self._name == "fish" else "\t"))
        return sorted({line for line in offered.read_text().splitlines() if line}) if offered.is_file() else []

    def _line_after(self, keys: str) -> str:
        read = self._at / "line"
        read.unlink(missing_ok=True)
        self._press(f"{keys}{_READ_LINE}")
        until = time.monotonic() + _TIMEOUT
        while not read.is_file() or not (line := read.read_text()).endswith("\n"):
            assert time.monotonic() < until, f"no answer to {keys!r}; {self._name} wrote {self._seen[-2000:]!r}"
            self._drain()
        return line[:-1]

    def _press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _drain(self) -> None:
        """Read what the shell writes, or it would wait for somebody who does; and say what terminal this is, if it asks."""
        if not select.select([self._terminal], [], [], 0.02)[0]:
            return
        try:
            written = os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:  # the shell has ended
            time.sleep(0.02)
            return
        self._seen += written
        if "\x1b[c" in written or "\x1b[0c" in written:  # fish 4 waits for the answer
            self._press("\x1b[?62c")

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)
