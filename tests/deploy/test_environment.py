"""`.env.example` lists every variable that is read anywhere, with the default that holds."""

from __future__ import annotations

import re
from pathlib import Path

from chatproject import env

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / ".env.example").read_text()
LISTED = dict(re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE, re.MULTILINE))


def of_the_workers() -> set[str]:
    config = (ROOT / "workers" / "config.py").read_text()
    return set(re.findall(r'"((?:CHAT|REDIS)_[A-Z_]+)"', config))


def of_compose() -> set[str]:
    return set(re.findall(r"\$\{([A-Z_]+)[:}]", (ROOT / "compose.yaml").read_text()))


def test_the_example_lists_every_variable_and_no_other() -> None:
    assert set(LISTED) == set(env.VARIABLES) | of_the_workers() | of_compose()


def test_the_example_shows_the_defaults() -> None:
    assert {name: LISTED[name] for name in env.VARIABLES} == {
        name: variable.default for name, variable in env.VARIABLES.items()
    }


def test_every_variable_is_explained() -> None:
    lines = EXAMPLE.splitlines()
    for name in LISTED:
        above = lines[next(i for i, line in enumerate(lines) if line.startswith(f"#{name}=")) - 1]
        assert re.match(r"# .{10,}\.$", above), name


def test_an_unchanged_copy_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(EXAMPLE)
    assert env.read({}, tmp_path / ".env") == env.read({}, None)


def test_the_environment_is_read_in_few_places() -> None:
    # Settings that are read where they are used cannot be listed.
    readers = {"chatproject/env.py", "workers/config.py"}
    # Hand the whole environment to children; or look at a library's own variable.
    passing_on = {
        "chatproject/ops/up/config.py", "chatproject/ops/up/redis_server.py", "chatproject/metrics.py",
        "workers/spare.py", "workers/model/vendor_int4.py",
    }  # fmt: skip
    setting_django = re.compile(r"os\.environ\.setdefault\(\s*\"DJANGO_SETTINGS_MODULE\"")
    found = {
        str(path.relative_to(ROOT))
        for package in ("chatproject", "workers")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"os\.(environ|getenv)", setting_django.sub("", path.read_text()))
        and "demo_model" not in path.parts
    }
    assert found <= readers | passing_on, f"read it in chatproject/env.py or workers/config.py: {found}"
