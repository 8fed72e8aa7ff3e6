"""The console script: `raytune-llm COMMAND [group=choice ...] [key=value ...]`, the same commands as jobs/*.py."""

from __future__ import annotations

import difflib
import sys

PROGRAM = "raytune-llm"
COMMANDS = {
    "check": "is the data sound for this method and base? nothing is trained",
    "import_openai": "files made for OpenAI's fine-tuning: what each is, and the sweep for it",
    "annotate": "a teacher writes rationales and labels for data.train",
    "train": "one tuning run, compared with its base and published to the registry",
    "sweep": "many tuning runs; the winner is published and, with serve.deploy=true, deployed",
    "evaluate": "a published version against its base, with confidence intervals",
    "serve": "an OpenAI-compatible endpoint for published versions",
    "service": "a tuning service in OpenAI's and Vertex's words: files, jobs, chats, a page",
    "registry": "list and show published versions, set aliases, roll back",
    "control": "trials and runs, seen from another shell; stop, clone, extend, pause, cancel",
    "demo": "the whole journey on the embedded base and data",
}


def main() -> None:
    """Run the command that the first argument names; exits the process, with status 2 for errors caused by user
    input."""
    name, *overrides = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(help_text())
        return
    if name == "--version":
        from raytune_llm import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"error: unknown command: {name}; {hint} ({PROGRAM} --help lists all)", file=sys.stderr)
        sys.exit(2)
    from raytune_llm.jobs import commands, config

    sys.argv[1:] = overrides
    config.run(name, getattr(commands, name))


def help_text() -> str:
    """All commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(
        [
            "Tune, sweep, compare and serve large language models on your own Ray cluster.",
            "",
            f"usage: {PROGRAM} COMMAND [group=choice ...] [key=value ...]",
            "",
            "Commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help explains all keys of a command.",
        ]
    )


if __name__ == "__main__":
    main()
