"""What is released: the source archive, the wheel, and the wheel at work in an empty folder."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from installed import Installed, build
from packaging.metadata import Metadata

import ablate

NOT_SHIPPED = re.compile(r"(^|/)(__pycache__|\.git|\.venv|\.cache|dist|\w*_cache)(/|$)|\.pyc$|^results/(?!README)")
DATA = (  # files that are read where the package lies, by kind
    "ablate/data/kjv.txt.xz",
    "ablate/variants/presets.yaml",
    "ablate/py.typed",
    "analysis/py.typed",
    "analysis/published/narang_table1.csv",
    "analysis/report/templates/report.html.j2",
    "analysis/report/templates/style.css",
)


@pytest.fixture(scope="module")
def metadata(installed: Installed) -> bytes:
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
        return wheel.read(name)


def names_in(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_is_the_same_from_the_tree_and_from_the_source_archive(
    installed: Installed, tmp_path: Path
) -> None:
    build(ROOT, tmp_path, "--wheel")
    (direct,) = tmp_path.glob("*.whl")
    assert direct.name == installed.wheel.name
    assert names_in(direct) == names_in(installed.wheel)


def test_the_wheel_has_the_two_packages_and_nothing_else(installed: Installed) -> None:
    packages = (file for name in ("ablate", "analysis") for file in (ROOT / name).rglob("*"))
    ours = {str(file.relative_to(ROOT)) for file in packages if file.is_file()}
    ours |= {f"ablate/{file.relative_to(ROOT)}" for file in (ROOT / "experiments").rglob("*") if file.is_file()}
    shipped = {name for name in names_in(installed.wheel) if ".dist-info/" not in name}
    assert shipped == {name for name in ours if not NOT_SHIPPED.search(name)}
    assert set(DATA) <= shipped


def test_the_source_archive_has_what_tests_and_documents_need(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml"}
    assert wanted | {"results/README.md", "experiments/quickstart.yaml", "tests/conftest.py"} <= names
    assert [name for name in names if NOT_SHIPPED.search(name)] == []


def test_the_metadata_is_valid(metadata: bytes, installed: Installed) -> None:
    said = Metadata.from_email(metadata, validate=True)
    assert (said.name, str(said.version)) == ("ablate-harness", ablate.__version__)
    assert said.license_expression == "MIT" and said.license_files == ["LICENSE"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names_in(installed.wheel))
    assert said.requires_python is not None and str(said.requires_python) == "<3.14,>=3.11"


def test_the_long_description_renders(metadata: bytes) -> None:
    """As a package index does it."""
    markdown = pytest.importorskip("readme_renderer.markdown")
    said = Metadata.from_email(metadata, validate=True)
    assert said.description_content_type == "text/markdown"
    rendered = markdown.render(said.description)
    assert rendered is not None and ">ablate<" in rendered and "<table>" in rendered


def test_the_changelog_begins_with_this_version() -> None:
    (first, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == ablate.__version__


def test_it_is_the_installed_package_that_runs(installed: Installed, tmp_path: Path) -> None:
    where = installed.run(
        "python", "-c", "import ablate, analysis; print(ablate.__file__, analysis.__file__)", cwd=tmp_path
    )
    for file in where.stdout.split():
        assert Path(file).is_relative_to(installed.environment) and not Path(file).is_relative_to(ROOT)
    assert installed.run("ablate", "--version", cwd=tmp_path).stdout == f"ablate {ablate.__version__}\n"


def test_its_catalogue_and_its_checks(installed: Installed, tmp_path: Path) -> None:
    listed = installed.run("ablate", "list", "--json", cwd=tmp_path)
    assert {"rope", "swiglu", "gpt2"} <= {each["name"] for each in json.loads(listed.stdout)}
    checked = installed.run("ablate", "check", "rope", cwd=tmp_path)
    assert checked.returncode == 0 and "passed" in checked.stdout, checked.stderr


def test_a_study_in_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(TINY)
    planned = installed.run("ablate", "plan", "grid.yaml", cwd=tmp_path)
    assert planned.returncode == 0 and "4 trials" in planned.stdout, planned.stderr
    ran = installed.run("ablate", "run", "grid.yaml", cwd=tmp_path)
    assert ran.returncode == 0 and "4 finished" in ran.stdout, ran.stdout + ran.stderr
    record = json.loads(next((tmp_path / "results" / "trials").glob("*/record.json")).read_text())
    assert record["environment"]["ablate"] == ablate.__version__ and record["environment"]["git_commit"] == ""
    assert (tmp_path / "results" / "studies" / "tiny" / "report" / "report.html").is_file()
    assert {each.name for each in tmp_path.iterdir()} == {"grid.yaml", "results"}
