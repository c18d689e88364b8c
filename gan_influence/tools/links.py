"""Every link to the repository follows the one address in pyproject.toml."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_REPOSITORY = r"(?P<repository>[\w-]+/[\w-]+(?:\.(?!git\b)[\w-]+)*)"
_OURS = re.compile(r"(?P<site>colab\.research\.google\.com/github/|mybinder\.org/v2/gh/|git\+https://github\.com/)" + _REPOSITORY)
_BARE = re.compile(r"(?P<site>(?<!git\+)https://github\.com/)" + _REPOSITORY)
_ADDRESS = re.compile(r'(?m)^(Repository\s*=\s*"https://github\.com/)[^"]*"')


def repository(root: Path = ROOT) -> str:
    """The repository as "owner/name", from `Repository` in pyproject.toml's `[project.urls]`."""
    address = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {}).get("Repository", "")
    found = _BARE.fullmatch(address)
    if not found:
        raise ValueError(f'pyproject.toml must name the repository, [project.urls] Repository = "https://github.com/owner/name", but has {address!r}')
    return found["repository"]


def rename(new: str, root: Path = ROOT) -> None:
    """Put another "owner/name" into pyproject.toml; the links do not follow before `rewrite`."""
    if not re.fullmatch(_REPOSITORY, new):
        raise ValueError(f"a repository is owner/name, as in ada/gan_influence, but this is {new!r}")
    repository(root)  # there must be an address to replace
    path = root / "pyproject.toml"
    path.write_text(_ADDRESS.sub(rf'\g<1>{new}"', path.read_text(encoding="utf-8")), encoding="utf-8")


def disagreements(root: Path = ROOT) -> list[str]:
    """The links that lead to another repository, as "file: link"."""
    right, texts = repository(root), _texts(root)
    return [f"{path.relative_to(root)}: {found[0]}" for path, text in texts.items()
            for found in _links(text, right, _seen(texts)) if found["repository"] != right]


def rewrite(root: Path = ROOT) -> list[str]:
    """Make every link agree with pyproject.toml; returns the files that changed."""
    right, texts, changed = repository(root), _texts(root), []
    for path, text in texts.items():
        # From the last to the first, so that earlier positions stay right.
        new = text
        for found in reversed(_links(text, right, _seen(texts))):
            new = new[: found.start("repository")] + right + new[found.end("repository"):]
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(str(path.relative_to(root)))
    return changed


def _texts(root: Path) -> dict[Path, str]:
    # Notebooks are edited as text: a change of address then changes nothing else in them.
    return {path: path.read_text(encoding="utf-8") for path in [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]}


def _seen(texts: dict[Path, str]) -> set[str]:
    return {found["repository"] for text in texts.values() for found in _OURS.finditer(text)}


def _links(text: str, right: str, seen: set[str]) -> list[re.Match]:
    # Colab, Binder and pip links are always ours. A plain GitHub link may lead to somebody else's work: it is ours when it
    # has our name, or leads where the others lead.
    name = right.split("/")[1]
    bare = [found for found in _BARE.finditer(text) if found["repository"] in seen or found["repository"].split("/")[1] == name]
    return sorted([*_OURS.finditer(text), *bare], key=re.Match.start)
