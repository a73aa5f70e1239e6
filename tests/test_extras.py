"""A missing optional package is an error of one line that names the extra."""

import pickle
import sys
from importlib import import_module
from pathlib import Path

import pytest

from rerank_plugin.extras import EXTRAS, MissingPackageError, require


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_names_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as error:
        require(package)
    expected = f"{package} is not installed: pip install 'rerank-plugin[{EXTRAS[package]}]'"
    assert str(error.value) == str(pickle.loads(pickle.dumps(error.value))) == expected


@pytest.mark.parametrize("framework", ["langchain_core", "llama_index"])
def test_an_adapter_without_its_framework_names_the_extra(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, framework, None)
    adapter = f"rerank_plugin.integrations.{EXTRAS[framework].replace('-', '_')}"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    with pytest.raises(MissingPackageError, match=f"rerank-plugin.{EXTRAS[framework]}"):
        import_module(adapter)


@pytest.mark.parametrize("package", ["starlette", "prometheus_client"])
def test_a_server_without_its_packages_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [name for name in sys.modules if name.startswith("rerank_plugin.server.")]
    for name in [*ours, *(name for name in sys.modules if name.partition(".")[0] == package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"rerank-plugin\[serve\]"):
        import_module("rerank_plugin.server.app")


def test_a_package_that_an_installed_one_lacks_is_not_blamed_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there") as error:
        require("needs_more")
    assert not isinstance(error.value, MissingPackageError)
