"""The commands of docs/prediction.md, run in a folder as the page assumes it."""

import io
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ser_fast import cli
from ser_fast.prediction.shipped import notice

PAGE = (Path(__file__).parents[2] / "docs/prediction.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

# torchrun and Ray have tests of their own.
HERE = [line for line in COMMANDS if "ser-fast predict" in line and "--engine=ray" not in line]


@pytest.mark.parametrize("command", HERE)
def test_page_commands_run(command, checkpoint, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/emodb")
    shutil.copy(checkpoint, "runs/emodb/best.safetensors")
    folder.rename("recordings")
    shutil.copy("recordings/3.wav", "some.wav")
    before, _, predict = command.rpartition("| ")
    if before:
        names = subprocess.run(shlex.split(before), capture_output=True, text=True, check=True).stdout
        monkeypatch.setattr("sys.stdin", io.StringIO(names))
    program, *arguments = shlex.split(predict)
    assert program == "ser-fast" and cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ("" if "runs/emodb" in command else f"ser-fast: {notice()}\n")
    out = next((Path(word.removeprefix("--out=")) for word in arguments if word.startswith("--out=")), None)
    lines = (said.out if out is None else out.read_text()).splitlines()
    assert len(lines) >= 5 and all("wav" in line for line in lines[out is not None and out.suffix == ".csv" :])


def test_page_has_commands():
    assert len(HERE) >= 4
