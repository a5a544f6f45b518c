"""Print what an extra of gradwire needs, one requirement a line, without gradwire itself.

The images install this list before the sources are copied in, so that a change of the sources does not
download the dependencies anew.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extra: str) -> list[str]:
    """The base dependencies and those of `extra`; extras of gradwire inside it are expanded."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found: list[str] = list(project["dependencies"])
    pending = [extra]
    while pending:
        for line in project["optional-dependencies"][pending.pop()]:
            itself = re.fullmatch(r"gradwire\[([\w,\s-]+)\]", line)
            if itself:
                pending += [name.strip() for name in itself[1].split(",")]
            else:
                found.append(line)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), sys.argv[1]), sep="\n")
