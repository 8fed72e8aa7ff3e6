"""Processes of this machine, by what Linux knows of them."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def is_running(pid: int, mark: str) -> bool:
    """Whether a process runs whose command line has this text: another process may have got its id since. One that
    has only just been started has no command line yet, but a program, which the kernel's own processes don't have."""
    try:
        command = _command(pid)
        return (mark in command if command else bool((PROC / str(pid) / "exe").readlink())) and _stat(pid)[0] != "Z"
    except OSError:
        return False


def descends_from(leader: int, mark: str) -> list[int]:
    """Ids of the processes in a session, of all that descend from them, and of all whose command line has this text.
    A session whose leader runs and hasn't this text is another one, which has got its id since."""
    parents, sessions, marked = {}, {}, set()
    for entry in PROC.glob("[0-9]*"):
        pid = int(entry.name)
        try:
            state, parent, _, session, *_ = _stat(pid)
            is_marked = mark in _command(pid)
        except OSError:
            continue  # ended meanwhile
        if state == "Z":
            continue
        parents[pid], sessions[pid] = int(parent), int(session)
        marked |= {pid} if is_marked else set()
    is_ours = leader not in sessions or is_running(leader, mark)
    found = marked | {pid for pid, session in sessions.items() if session == leader and is_ours}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _command(pid: int) -> str:
    return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _stat(pid: int) -> list[str]:
    """State, parent, process group, session …"""
    return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
