"""Prints the test files that were changed most since the branch left main, uncommitted and new ones too.

``make quick`` runs them beside its own: python -m tests.most_changed COUNT [PREFIX_TO_LEAVE_OUT...]
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

FILES = "tests/**/test_*.py"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def most_changed(count: int, left_out: tuple[str, ...]) -> list[str]:
    """Paths, the most changed first; lines that were added count, a file that only moved does not."""
    try:
        base = git("merge-base", "HEAD", "main").strip()
    except subprocess.CalledProcessError:  # a clone of another branch alone
        base = "HEAD"
    lines: Counter[str] = Counter()
    # Without its NULs a renamed file would be "{old => new}/name".
    fields = iter(git("diff", "-z", "--find-renames", "--numstat", "--diff-filter=d", base, "--", FILES).split("\0"))
    for field in fields:
        if field:
            added, _, path = field.split("\t")
            if not path:
                next(fields)
                path = next(fields)
            lines[path] = int(added)
    for path in git("ls-files", "--others", "--exclude-standard", "--", FILES).splitlines():
        lines[path] = len(Path(path).read_text().splitlines())
    return [path for path, added in lines.most_common() if added and not path.startswith(left_out)][:count]


if __name__ == "__main__":
    print(*most_changed(int(sys.argv[1]), tuple(sys.argv[2:])))
