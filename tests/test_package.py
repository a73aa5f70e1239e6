"""The wheel contains the tracked files, and importing the package is fast."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "rerank_plugin": "rerank_plugin",
    "finetune": "rerank_plugin/finetune",
    "integrations": "rerank_plugin/integrations",
}


def test_the_wheel_contains_exactly_the_tracked_files(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # Build from a copy: files of an earlier build in place would get into the wheel.
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        copy = tmp_path / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    tracked = [name for name in listed if name.partition("/")[0] in FOLDERS]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, "."],
        cwd=tmp_path / "tree",
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    extension = "rerank_plugin/engine/cpu/_compiled."
    compiled = {name for name in installed if name.startswith(extension)}
    assert len(compiled) == (shutil.which("gcc") is not None)
    expected = set()
    for name in tracked:
        folder, _, rest = name.partition("/")
        expected.add(f"{FOLDERS[folder]}/{rest}")
    assert installed - compiled == expected


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, rerank_plugin, rerank_plugin.finetune; "
    code += "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
