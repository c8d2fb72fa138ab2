"""What the site needs beyond mkdocs: pages that lie outside docs/, and links to files of the repository.

README.md and the others in `PAGES` become pages. A file of the repository that a page links to, a module or a table of
results, becomes a page that shows it; a folder becomes a page that lists it. So every link that works in the repository
works in the site, too.
"""

from __future__ import annotations

import posixpath
import re
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SHOWN = "repository"  # folder of the site for files of the repository
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".json": "json", ".cff": "yaml"}


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config):
    """Show mkdocstrings the package as it is installed, with planners/ and trainers/ in it."""
    config.extra["package"] = tempfile.TemporaryDirectory(prefix="nnunet_din_site_")
    package = Path(config.extra["package"].name) / "nnunet_din"
    package.mkdir()
    for path in (*(ROOT / "nnunet_din").iterdir(), ROOT / "planners", ROOT / "trainers"):
        (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(package.parent)]
    return config


def on_files(files, config):
    """Add the pages that lie elsewhere, and one for each linked file of the repository."""
    pages = {ROOT / path: name for path, name in PAGES.items()}
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    for source in [*pages, *(ROOT / "docs").rglob("*.md")]:
        for target, _ in LINK.findall(source.read_text(encoding="utf-8")):
            path = (source.parent / target).resolve()
            name = _name(path)
            if name and path.exists() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, content=_shown(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links within the repository into links within the site."""
    source = next((path for path, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def replaced(match):
        path = (ROOT / source).parent.joinpath(match[1]).resolve()
        name = _name(path)
        if name is None or files.get_file_from_path(name) is None:
            return match[0]  # mkdocs says what is wrong with it
        return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    return markdown if page.file.src_uri.startswith(SHOWN) else LINK.sub(replaced, markdown)


def on_post_build(config):
    """Remove the temporary folder."""
    config.extra["package"].cleanup()


def _name(path: Path) -> str | None:
    """Name in the site of a file or folder of the repository."""
    if not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    if path.is_dir() and (inside / "README.md").as_posix() in PAGES:
        inside = inside / "README.md"
    if inside.as_posix() in PAGES:
        return PAGES[inside.as_posix()]
    if inside.parts[:1] == ("docs",) and inside.suffix != ".py":
        return inside.relative_to("docs").as_posix()
    return f"{SHOWN}/{inside.as_posix()}.md"


def _shown(path: Path) -> str:
    """Page that shows a file or lists a folder."""
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        entries = sorted(each for each in path.iterdir() if each.name != "__pycache__")
        return title + "".join(f"- `{each.name}{'/' * each.is_dir()}`\n" for each in entries)
    fence = "`" * 4
    return f"{title}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n{fence}\n"
