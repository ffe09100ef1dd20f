"""Versions: one set of pins, and environments that hold what their rules import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from snake import ROOT, run_snakemake, text_of

from palimpsest.provenance import _reachable, import_closure


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and line[0] != "#")
    }


def environment_pins(path: Path) -> dict[str, str]:
    entries = yaml.safe_load(path.read_text())["dependencies"]
    pins = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    return {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}


def test_environments_pin_what_was_tested():
    tested = constraints()
    for path in (ROOT / "envs").glob("*.yaml"):
        for name, version in environment_pins(path).items():
            assert tested[name] == version, f"{path.name}: {name}"


def test_tested_versions_satisfy_the_ranges():
    tested = constraints()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_constraints_fit_every_build():
    for name, version in constraints().items():
        assert "+" not in version, name
    assert not re.search(r"^(-|https?:)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)


def test_environments_of_rules_exist():
    named = set()
    for rules in (ROOT / "workflow" / "rules").glob("*.smk"):
        named |= set(re.findall(r'"\.\./\.\./(envs/\w+\.yaml)"', rules.read_text()))
    assert named == {f"envs/{path.name}" for path in (ROOT / "envs").glob("*.yaml")}


# What the rules of an environment run: these packages and modules, and whatever of palimpsest they import, at the top or later.
RUN_IN = {
    "data": ("data",),
    "torch": ("models", "statistics", "learning", "editors", "protocols", "runs", "toy"),
    "plot": ("figures", "claims", "published"),
}
NAMED_OTHERWISE = {"yaml": "pyyaml"}
# Not needed there: records are read from the hub by the rules of data alone, what they write is opened as a file.
NOT_REACHED = {("torch", "datasets")}


@pytest.mark.parametrize("environment", RUN_IN)
def test_environments_name_what_is_imported_late(environment):
    """A package that is imported inside a function is missed only when a job has come that far."""
    package = ROOT / "src" / "palimpsest"
    modules = [
        ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for name in RUN_IN[environment]
        for file in (
            (package / name).rglob("*.py") if (package / name).is_dir() else [package / f"{name}.py"]
        )
    ]
    wanted = {}
    for name, file in import_closure(*modules).items():
        for node in _reachable(ast.parse(file.read_text(encoding="utf-8")).body):
            found = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            wanted |= {part.partition(".")[0]: name for part in found}
    unused = {name for place, name in NOT_REACHED if place == environment}
    outside = set(wanted) - set(sys.stdlib_module_names) - unused - {"palimpsest"}
    pins = environment_pins(ROOT / "envs" / f"{environment}.yaml")
    missing = {
        name: wanted[name]
        for name in outside
        if canonicalize_name(NAMED_OTHERWISE.get(name, name)) not in pins
    }
    assert outside and not missing, f"imported by: {missing}"


def test_packages_that_conda_lacks_are_named_with_the_tested_versions():
    """Extras of models are in no environment; profiles/README.md has the lines to add."""
    tested = constraints()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = dict(re.findall(r"`- ([\w-]+)==([\w.]+)`", (ROOT / "profiles" / "README.md").read_text()))
    for extra in ("court", "t5", "placement"):
        for text in project["optional-dependencies"][extra]:
            name = canonicalize_name(Requirement(text).name)
            assert said[name] == tested[name], extra


@pytest.mark.conda
@pytest.mark.slow
def test_rules_run_in_their_own_environments(tmp_path: Path):
    """All three environments, made by the conda double from exactly what their files name: data, a model, a figure."""
    import os

    double = ROOT / "tests" / "doubles" / "conda" / "bin"
    path = os.pathsep.join([str(double), os.environ["PATH"]])
    done = run_snakemake(
        tmp_path, "data", "results/models/smoke-gpt2/model.safetensors", "grace_toy", "--cores", "2", "--sdm", "conda",
        "--configfile", str(ROOT / "config" / "smoke.yaml"),
        PATH=path, PALIMPSEST_TEST_PYTHON=sys.executable,
    )  # fmt: skip
    assert done.returncode == 0, text_of(done)[-5000:]
    assert (tmp_path / "figures" / "smoke" / "grace_toy.svg").exists()
    assert len(list((tmp_path / ".snakemake" / "conda").glob("*.yaml"))) == 3
