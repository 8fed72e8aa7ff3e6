"""Whether clients of OpenAI's API work with an endpoint as they are: each is installed and run for real.

    python benchmarks/clients/run.py --home HOME --pairs demo@1 --chats chat@1 --work FOLDER

HOME is a registry's home with a version tuned on plain pairs and one tuned on chats, of one base; for the calls of
tools the second has a chat template that takes tools (model.chat_template=…). `jobs/serve.py` serves both in its own
process. FOLDER keeps an environment for each client, with the versions below; lm-evaluation-harness uses the packages
of this interpreter. Prints the table of docs/serving.md, and what failed. Needs node, and package registries the first
time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

from raytune_llm.stores.registry import Registry

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = {
    "openai_python.py": ("openai", "openai==3.57.0"),
    "litellm_client.py": ("litellm", "litellm==1.110.2"),
    "langchain_client.py": ("langchain-openai", "langchain-openai==1.7.4"),
    "llama_index_client.py": ("llama-index (OpenAILike)", "llama-index-llms-openai-like==0.8.1"),
    "instructor_client.py": ("instructor", "instructor==1.17.0"),
    "lm_eval_client.py": ("lm-evaluation-harness", "lm_eval[api]==0.4.13"),
}
"""A client's script: its name, and what pip installs."""
NODE = "openai@6.49.0"
READY_SECONDS = 300.0
CLIENT_SECONDS = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", required=True)
    parser.add_argument("--pairs", required=True, help="the version tuned on plain pairs, NAME@3")
    parser.add_argument("--chats", required=True, help="the version tuned on chats, NAME@3")
    parser.add_argument("--work", required=True, type=Path, help="folder of the clients' environments")
    parser.add_argument("--only", default="", help="clients whose script has this in its name")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    versions = f"adapter='{arguments.pairs},{arguments.chats}'"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "serve.py"), versions, f"home={arguments.home}", f"serve.port={port}"],
        stdout=sys.stderr,
    )
    try:
        environment = _environment(arguments, f"http://127.0.0.1:{port}/v1", server)
        rows = []
        for name, version, command in _clients(arguments.work):
            if arguments.only in str(command[-1]):
                rows += [(name, version, result) for result in _results(command, environment)]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(120)
    _print(rows)
    sys.exit(0 if rows and all(result["passed"] for _, _, result in rows) else 1)


def _environment(arguments: argparse.Namespace, url: str, server: subprocess.Popen[bytes]) -> dict[str, str]:
    """What the scripts are given, once the endpoint is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
                base = json.load(answer)["data"][0]["id"]
                break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the endpoint did not start") from None
            time.sleep(1)
    folder = Registry(os.path.join(arguments.home, "registry")).resolve(arguments.pairs).card.base
    own = {"URL": url, "MODEL": arguments.pairs, "CHAT": arguments.chats, "BASE": base, "TOKENIZER": folder}
    return {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", **own}


def _clients(work: Path) -> list[tuple[str, str, list[str]]]:
    """Name, version and command of each, installed."""
    found = []
    for script, (name, package) in PACKAGES.items():
        folder = work / script.removesuffix(".py")
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
            if script.startswith("lm_eval"):
                own = sysconfig.get_paths()["purelib"]
                [site] = folder.glob("lib/python*/site-packages")
                (site / "of_this_interpreter.pth").write_text(own + "\n")
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
        found.append((name, package.partition("==")[2], [str(python), str(HERE / script)]))
    node = work / "node"
    if not (node / "node_modules").is_dir():
        node.mkdir(exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(node), NODE], check=True)
    script = node / "openai_node.mjs"  # node looks for packages next to a script
    script.write_text((HERE / "openai_node.mjs").read_text())
    found.append(("openai (node)", NODE.partition("@")[2], ["node", str(script)]))
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    found.append(("curl", version, ["bash", str(HERE / "curl.sh")]))
    return found


def _results(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What a script reports; one failure where it reports nothing."""
    print(f"… {command[-1]}", file=sys.stderr, flush=True)
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CLIENT_SECONDS)
        output, rest = run.stdout, run.stderr
    except subprocess.TimeoutExpired as error:
        output, rest = (error.stdout or b"").decode(), f"it took longer than {CLIENT_SECONDS:.0f} s"
    results = [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]
    return results or [{"asked": "anything", "passed": False, "detail": rest[-600:]}]


def _print(rows: list[tuple[str, str, dict[str, Any]]]) -> None:
    print("| client | version | asked | passed |\n|---|---|---|---|")
    for name, version in dict.fromkeys((name, version) for name, version, _ in rows):
        own = [result for other, _, result in rows if other == name]
        for passed in (True, False):
            asked = "; ".join(result["asked"] for result in own if result["passed"] is passed)
            if asked:
                print(f"| {name} | {version} | {asked} | {'yes' if passed else 'no'} |")
    for name, _, result in rows:
        if not result["passed"]:
            print(f"\n{name}: {result['asked']}: {result['detail'] or 'a wrong answer'}")


if __name__ == "__main__":
    main()
