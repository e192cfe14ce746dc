"""What cannot be caught is remembered: a plugin that a process died of is left out until it is installed again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from plugin_modules import Discover, discovery, only

from pynchy.plugin import State
from pynchy.plugin._crashes import CrashLog

_DISCOVER = """
import json
from pynchy.plugin import discover_plugins
print(json.dumps([record.to_dict() for record in discover_plugins().records]))
"""

_PLUGIN = """
import os, signal, sys
from pathlib import Path
from pynchy.plugin import SkillPlugin
with Path(__file__).with_suffix(".imports").open("a") as file:
    file.write("again\\n")
{code}
class Plugin(SkillPlugin):
    name = "{name}"
    def __init__(self):
        {init}
    def skill_paths(self):
        {collect}
        return []
"""


class Site:
    """A directory of installed distributions, and processes that discover what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(self, name: str, code: str = "", init: str = "pass", collect: str = "pass") -> None:
        """Install the plugin `name`, in place of what was there."""
        metadata = self.metadata(name)
        shutil.rmtree(metadata, ignore_errors=True)
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pynchy-plugin-{name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[pynchy.plugins]\n{name} = {name}_module:Plugin\n")
        self.write(name, code, init, collect)

    def write(self, name: str, code: str = "", init: str = "pass", collect: str = "pass") -> None:
        """Change its code alone, as the author of an editable plugin does."""
        text = _PLUGIN.format(name=name, code=code, init=init, collect=collect)
        (self.path / f"{name}_module.py").write_text(text)

    def metadata(self, name: str) -> Path:
        """Where its metadata is."""
        return self.path / f"pynchy_plugin_{name}-1.0.dist-info"

    def imports(self, name: str) -> int:
        """How often its module was imported."""
        path = self.path / f"{name}_module.imports"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def process(self, **env: str) -> subprocess.Popen[str]:
        """A start."""
        paths = os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-B", "-c", _DISCOVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **env},
        )

    def dies(self, **env: str) -> int:
        """A start that finds nothing more; returns its exit code."""
        with self.process(**env) as process:
            output, _ = process.communicate(timeout=60)
        assert output == ""
        return process.returncode

    def records(self, **env: str) -> dict[str, dict[str, Any]]:
        """What a start finds, by entry point."""
        with self.process(**env) as process:
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return {record["entry_point"]: record for record in json.loads(output)}

    def states(self, **env: str) -> dict[str, str]:
        """How each of its own plugins is."""
        return {name: one["state"] for name, one in self.records(**env).items() if self.metadata(name).exists()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """With a plugin before and one after any that dies."""
    site = Site(tmp_path / "site")
    site.install("a_first")
    site.install("z_last")
    return site


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover what a text defines, in this process."""
    return discovery(tmp_path, monkeypatch)


def loading(tmp_path: Path) -> list[str]:
    """What is written in the home's log."""
    return sorted(path.read_text() for path in (tmp_path / "home/loading").iterdir())


_SEGFAULT = "import ctypes, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); ctypes.string_at(0)"

_DEATHS = {
    "an exit without a word": ({"code": "os._exit(0)"}, 0),
    "a kill": ({"code": "os.kill(os.getpid(), signal.SIGKILL)"}, -signal.SIGKILL),
    "a segmentation fault": ({"code": _SEGFAULT}, -signal.SIGSEGV),
    "an exit while it is created": ({"init": "os._exit(3)"}, 3),
    "an exit while it is asked": ({"collect": "os._exit(4)"}, 4),
}


@pytest.mark.parametrize(("code", "status"), _DEATHS.values(), ids=_DEATHS)
def test_a_plugin_that_a_start_died_of_is_left_out_of_the_next_ones(
    code: dict[str, str], status: int, site: Site
) -> None:
    site.install("dies", **code)
    assert site.dies() == status
    for _ in range(2):
        records = site.records()
        assert {name: records[name]["state"] for name in ("a_first", "dies", "z_last")} == {
            "a_first": "ready",
            "dies": "failed",
            "z_last": "ready",
        }
        record = records["dies"]
        assert record["phase"] == "load"
        assert record["reason"] == "an earlier start died while it was being loaded, so it is left out"
        assert "`pynchy plugins check dies`" in record["remedy"]
        assert "pynchy-plugin-dies" in record["remedy"]
    assert site.imports("dies") == 1


def test_of_several_each_costs_one_start(site: Site) -> None:
    for number in (1, 2, 3):
        site.install(f"dies_{number}", code=f"os._exit({number})")
    assert [site.dies() for _ in range(3)] == [1, 2, 3]
    states = site.states()
    assert states.pop("a_first") == states.pop("z_last") == "ready"
    assert set(states.values()) == {"failed"}


def test_a_plugin_that_is_installed_again_is_tried_again(site: Site, tmp_path: Path) -> None:
    site.install("dies", code="os._exit(1)")
    assert site.dies() == 1
    assert site.states()["dies"] == "failed"
    site.install("dies", code="os._exit(2)")
    assert site.dies() == 2
    assert site.states()["dies"] == "failed"
    site.install("dies")
    assert site.states()["dies"] == "ready"
    assert loading(tmp_path) == []


def test_a_plugin_that_was_mended_in_place_is_left_out_until_it_was_checked(site: Site, tmp_path: Path) -> None:
    site.install("dies", code="os._exit(1)")
    assert site.dies() == 1
    site.write("dies")
    assert site.states()["dies"] == "failed"
    (entry_point,) = PathDistribution(site.metadata("dies")).entry_points
    with CrashLog.open(tmp_path / "home") as crashes:
        assert crashes.died_of(entry_point)
        crashes.forget(entry_point)
        assert not crashes.died_of(entry_point)
        crashes.forget(entry_point)  # there is nothing left to forget
    assert site.states()["dies"] == "ready"


def test_an_uninstalled_plugin_that_a_start_died_of_is_gone(site: Site) -> None:
    site.install("dies", code="os._exit(1)")
    assert site.dies() == 1
    shutil.rmtree(site.metadata("dies"))
    assert site.states() == {"a_first": "ready", "z_last": "ready"}


# --- what is no death -------------------------------------------------------------------------------------------------


def test_a_start_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    assert site.states() == {"a_first": "ready", "z_last": "ready"}
    assert loading(tmp_path) == []
    assert stat.S_IMODE((tmp_path / "home/loading").stat().st_mode) == 0o700


def test_a_plugin_that_raises_is_tried_again_each_time(site: Site, tmp_path: Path) -> None:
    site.install("raises", code="sys.exit(1)")
    for start in (1, 2):
        assert site.states()["raises"] == "failed"
        assert site.imports("raises") == start
    assert loading(tmp_path) == []


#: Says that it is being loaded and goes on when it is told to, if the start is the one that should wait.
_WAITS = 'if "WAIT" in os.environ: open(os.environ["WAIT"], "w").close(); sys.stdin.readline()'


def waiting(site: Site) -> subprocess.Popen[str]:
    """A start that is in the middle of loading the plugin `waits`."""
    site.install("waits", code=_WAITS)
    fifo = site.path / "fifo"
    os.mkfifo(fifo)
    process = site.process(WAIT=str(fifo))
    fifo.read_bytes()  # until it has been opened and closed
    return process


def test_two_starts_at_once_blame_no_plugin_of_the_other(site: Site, tmp_path: Path) -> None:
    with waiting(site) as first:
        assert site.states() == {"a_first": "ready", "waits": "ready", "z_last": "ready"}
        assert len(loading(tmp_path)) == 1
        output, _ = first.communicate("go on\n", timeout=60)
    assert {record["entry_point"]: record["state"] for record in json.loads(output)}["waits"] == "ready"
    assert site.states()["waits"] == "ready"
    assert loading(tmp_path) == []


def test_a_start_that_is_killed_beside_another_is_a_death_all_the_same(site: Site) -> None:
    with waiting(site) as first:
        assert site.states()["waits"] == "ready"
        first.kill()
    assert site.states() == {"a_first": "ready", "waits": "failed", "z_last": "ready"}


def test_an_interruption_from_the_keyboard_is_no_death(site: Site, tmp_path: Path) -> None:
    with waiting(site) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert loading(tmp_path) == []
    assert site.states()["waits"] == "ready"


def test_an_interruption_of_a_load_without_end_is_a_death(
    discover: Discover, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "class P(Good):\n    def __init__(self): raise KeyboardInterrupt"
    with pytest.raises(KeyboardInterrupt):
        discover(text, p="P")
    assert loading(tmp_path) == []
    monkeypatch.setattr("pynchy.plugin._crashes._PATIENCE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        discover(text, p="P")
    (death,) = loading(tmp_path)
    assert death.startswith("p = package_")


def test_plugins_of_two_processes_at_their_beginning_are_not_mixed_up(tmp_path: Path, site: Site) -> None:
    """Each log is opened while others are opened and closed, many times over."""
    (entry_point,) = PathDistribution(site.metadata("a_first")).entry_points
    blamed: list[str] = []
    unwritten: list[str] = []

    def start() -> None:
        for _ in range(150):
            with CrashLog.open(tmp_path / "home") as crashes:
                if crashes.died_of(entry_point):
                    blamed.append(entry_point.name)
                with crashes.loading(entry_point):
                    if not Path(crashes._path).exists():
                        unwritten.append(crashes._path)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (blamed, unwritten) == ([], [])
    assert loading(tmp_path) == []


# --- homes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a file", "below a file", "the log is a file", "nobody's"])
def test_where_nothing_can_be_written_nothing_is_remembered_and_plugins_work(
    kind: str, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "with-a-file").mkdir()
    (tmp_path / "with-a-file/loading").touch()
    home = {
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file/home"),
        "the log is a file": str(tmp_path / "with-a-file"),
        "nobody's": "~nobody-of-this-name/home",
    }[kind]
    assert site.states(PYNCHY_HOME=home) == {"a_first": "ready", "z_last": "ready"}
    site.install("dies", code="os._exit(1)")
    assert [site.dies(PYNCHY_HOME=home) for _ in range(2)] == [1, 1]


def test_whatever_lies_in_the_log_holds_up_nobody(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "home/loading"
    log.mkdir(parents=True)
    (log / "empty").touch()
    (log / "directory").mkdir()
    (log / "link").symlink_to("gone")
    (log / "of-another-plugin").write_text("other = other_module:Plugin")
    assert site.states() == {"a_first": "ready", "z_last": "ready"}
    assert sorted(path.name for path in log.iterdir()) == ["directory", "link", "of-another-plugin"]
    (log / "no-text").write_bytes(b"\xff\xfe\x00")
    assert site.states() == {"a_first": "ready", "z_last": "ready"}


def test_without_plugins_no_home_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynchy.plugin import discover_plugins

    monkeypatch.setattr("pynchy.plugin._discovery.entry_points", lambda group: [])
    discover_plugins()
    assert not (tmp_path / "home").exists()


def test_a_death_is_told_in_the_process_that_finds_it(discover: Discover, tmp_path: Path) -> None:
    discover()
    (tmp_path / "home/loading/1-death").write_text(f"good = package_{tmp_path.name}.module_1:Good")
    record = only(discover())
    assert (record.state, record.phase) == (State.FAILED, "load")
    assert (record.milliseconds, record.import_milliseconds) == (0.0, 0.0)
