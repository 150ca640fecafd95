"""The pages describe the repository correctly: links, places, versions, groups."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import hwtrain

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
INCLUDED = {"changelog.md", "contributing.md"}  # files of the root, for the site
DOCS = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if page.parent.name != "generated" and page.name not in INCLUDED
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIRED = {
    found.name: found.specifier for found in map(Requirement, PROJECT["dependencies"])
}
TESTING = {
    found.name: found.specifier
    for found in map(Requirement, PROJECT["optional-dependencies"]["test"])
}
OLDEST = dict(
    re.findall(
        r"([\w-]+)==([\d.]+)",
        re.search(
            r"^oldest=\((.*?)\)", (ROOT / ".ci/nightly").read_text(), re.M | re.S
        )[1],
    )
)


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *DOCS], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    text = without_code(page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("images/"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text("utf-8")), target


def test_the_readme_is_short_and_names_every_page():
    assert len(README.split()) <= 800
    notebooks = (ROOT / "docs/notebooks").glob("*.ipynb")
    for page in {*DOCS, *notebooks} - {ROOT / "docs/index.md"}:
        assert f"({page.relative_to(ROOT)})" in README


def test_the_picture_of_the_architecture_is_that_of_the_imports():
    layers = runpy.run_path(str(ROOT / "tests/test_imports.py"))["LAYERS"]
    picture = re.search(r"```text\n(.*?)```", CONTRIBUTING, re.S)[1]
    # Sub-packages are on the left, their descriptions on the right.
    lines = re.findall(r"^  (\w+(?: \w+)*)(?:  .*)?$", picture, re.M)
    assert [set(line.split()) for line in lines] == layers[::-1]


def test_the_places_where_things_go_are_there():
    section = CONTRIBUTING.partition("## Where do I put")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w./]+)`", section))
    places = {name for name in named if "/" in name or name.endswith((".py", ".md"))}
    assert len(places) > 30
    for place in places:
        if "NAME" not in place:
            roots = (ROOT, ROOT / "hwtrain", *(ROOT / "hwtrain").glob("*/"))
            assert any((root / place).exists() for root in roots), place


def test_versions_are_the_same_everywhere():
    rows = re.findall(
        r"\| `(\w+)` \| `([^`]+)` \| ([\d.]+) to ([\d.]+) \|", CONTRIBUTING
    )
    assert {row[0] for row in rows} == {"jax", "flax"}
    for name, bounds, first, last in rows:
        assert REQUIRED[name] == Requirement(name + bounds).specifier
        assert first in REQUIRED[name] and last in REQUIRED[name]
        assert first == OLDEST[name]
    for name, version in OLDEST.items():
        if name != "jaxlib":
            assert f">={version}" in str(REQUIRED[name])
            assert f"{name} {version}" in CONTRIBUTING


def test_the_citation_has_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == hwtrain.__version__
    assert cited["license"] == PROJECT["license"]


def test_hooks_are_pinned_and_ruff_is_one_that_the_tests_take():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    revisions = {repo["repo"]: repo["rev"] for repo in config["repos"]}
    assert all(re.fullmatch(r"v[\d.]+", revision) for revision in revisions.values())
    (ruff,) = (rev for repo, rev in revisions.items() if "ruff" in repo)
    assert Version(ruff) in TESTING["ruff"]
    hooks = [hook["id"] for repo in config["repos"] for hook in repo["hooks"]]
    assert {"ruff-check", "ruff-format"} <= set(hooks)


def test_the_changelog_has_each_group_once():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.split(r"^## ", text, flags=re.M)[1:]
    assert releases[0].startswith("[Unreleased]\n")
    for release in releases:
        groups = re.findall(r"^### (.*)$", release, re.M)
        order = ["Added", "Changed", "Fixed", "Removed"]
        assert groups == [group for group in order if group in groups]
