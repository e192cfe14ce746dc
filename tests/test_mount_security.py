"""Which folders an agent may see beside its own, on a real disk: each rule, what goes around it, and the races."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import missing

from pynchy import blocked_names, mount_security, places
from pynchy.mount_security import MountRefused, extra_mounts
from pynchy.plugin import ContainerRuntime
from pynchy.runtime import agent_image
from pynchy.testing import _runtime_probe as probe
from pynchy.testing._runtime_bench import Bench
from pynchy.types import ExtraMount, Group, VolumeMount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
as_a_user = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")

_ANYTHING = '[[root]]\npath = "~/Documents"\nwrite = "all"\n'


def group(name: str, *mounts: str, is_main: bool = False) -> Group:
    """A group with these mounts, `:rw` behind those that it may write."""
    extra = tuple(ExtraMount(one.removesuffix(":rw"), not one.endswith(":rw")) for one in mounts)
    return Group(f"pigeon:{name}", name, name, is_main=is_main, mounts=extra)


@dataclass
class World:
    """A person's home with some documents, and Pynchy's home in it."""

    person: Path

    @property
    def home(self) -> Path:
        """Pynchy's."""
        return self.person / ".local/share/pynchy"

    def folder(self, name: str) -> Path:
        """A folder of the person's, with those above it."""
        path = self.person / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def allow(self, text: str) -> None:
        """Write the allowlist."""
        (self.home / "mounts.toml").write_text(text)
        (self.home / "mounts.toml").chmod(0o600)

    def mounts(self, *mounts: str, others: tuple[Group, ...] = (), is_main: bool = False) -> tuple[VolumeMount, ...]:
        """What a group gets that is set to these."""
        family = group("family", *mounts, is_main=is_main)
        return extra_mounts(self.home, family, (family, *others))

    def refusal(self, *mounts: str, others: tuple[Group, ...] = (), is_main: bool = False) -> str:
        """Why it gets none: one sentence, with something to do in it."""
        with pytest.raises(MountRefused) as refused:
            self.mounts(*mounts, others=others, is_main=is_main)
        sentence = str(refused.value)
        assert "\n" not in sentence
        assert "; " in sentence
        return sentence


def build(person: Path) -> World:
    """A world with one root that all may write in."""
    world = World(person)
    previous = os.umask(0o022)
    try:
        for name in ("Documents/recipes/soups", "Documents/letters", "private", ".local/share/pynchy/groups/family"):
            world.folder(name)
        (person / "Documents/recipes/soup.txt").write_text("onions")
    finally:
        os.umask(previous)
    world.home.chmod(0o700)
    world.allow(_ANYTHING)
    return world


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose person runs Pynchy."""
    world = build(tmp_path_factory.mktemp("person"))
    monkeypatch.setenv("HOME", str(world.person))
    return world


# --- what may be --------------------------------------------------------------------------------------------


def test_a_folder_in_a_root_is_mounted_read_only_by_its_own_name(world: World) -> None:
    path = str(world.person / "Documents/recipes")
    assert world.mounts("~/Documents/recipes") == (VolumeMount(path, "/workspace/extra/recipes", readonly=True),)


def test_a_root_itself_can_be_mounted(world: World) -> None:
    (mount,) = world.mounts("~/Documents")
    assert mount.host_path == str(world.person / "Documents")


def test_a_group_that_asks_for_nothing_gets_it_whatever_the_allowlist_is(world: World) -> None:
    world.allow("this is no TOML")
    assert world.mounts() == ()


@pytest.mark.parametrize(
    "written",
    [
        "{person}/Documents/recipes/",
        "{person}//Documents///recipes//",
        "~/Documents/./recipes/../recipes",
        "~/Documents/recipes/soups/..",
        "//{person}/Documents/recipes",
    ],
)
def test_a_path_can_be_written_in_many_ways_and_is_mounted_in_one(world: World, written: str) -> None:
    (mount,) = world.mounts(written.format(person=world.person))
    assert mount.host_path == str(world.person / "Documents/recipes")


def test_a_link_to_a_folder_in_a_root_is_mounted_as_what_it_leads_to(world: World) -> None:
    (world.person / "cooking").symlink_to("Documents/letters/../recipes")
    (mount,) = world.mounts("~/cooking")
    assert mount == VolumeMount(str(world.person / "Documents/recipes"), "/workspace/extra/recipes", readonly=True)


def test_a_root_can_be_given_through_a_link(world: World) -> None:
    (world.person / "papers").symlink_to(world.person / "Documents")
    world.allow('[[root]]\npath = "~/papers"\n')
    assert world.mounts("~/Documents/recipes") == world.mounts("~/papers/recipes")


def test_folders_of_one_name_are_told_apart_inside(world: World) -> None:
    for name in ("one/notes", "two/notes", "three/notes", "four/notes-2"):
        world.folder(f"Documents/{name}")
    found = world.mounts(*(f"~/Documents/{name}" for name in ("one/notes", "four/notes-2", "two/notes", "three/notes")))
    assert [mount.container_path.rpartition("/")[2] for mount in found] == ["notes", "notes-2", "notes-3", "notes-4"]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("with a space", "with-a-space"),
        ("co:lon", "co-lon"),
        ("quo\"te, com'ma", "quo-te-com-ma"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("...", "folder"),
        ("🎉", "folder"),
        ("Süßes", "Süßes"),
        ("料理", "料理"),
        ("x" * 200, "x" * 60),
    ],
)
def test_an_odd_name_is_made_a_plain_one_inside_and_left_alone_outside(world: World, name: str, inside: str) -> None:
    path = world.folder(f"Documents/{name}")
    assert world.mounts(str(path)) == (VolumeMount(str(path), f"/workspace/extra/{inside}", readonly=True),)


# --- what may not -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("Documents/recipes", "a path begins with `/` or `~/`"),
        ("", "a path begins with `/` or `~/`"),
        ("~root/Documents", "a path begins with `/` or `~/`"),
        ("./Documents", "a path begins with `/` or `~/`"),
        ("~/Documents/gone", "it does not exist"),
        ("~/Documents/gone/..", "it does not exist"),
        ("~/Documents/recipes/soup.txt", "it is no folder"),
        ("~/Documents/recipes/soup.txt/", "it is no folder"),
        ("~/Documents/recipes/soup.txt/..", "cannot be looked up"),
        ("~/private", "no root of"),
        ("~/Documents/../private", "no root of"),
        ("~", "Pynchy keeps its own things there"),
        ("/", "Pynchy keeps its own things there"),
        ("~/.local", "Pynchy keeps its own things there"),
        ("~/.local/share/pynchy", "Pynchy keeps its own things there"),
        ("~/.local/share/pynchy/groups/family", "Pynchy keeps its own things there"),
        ("/etc", "no root of"),
        ("/proc/self", "no root of"),
        ("~/Documents/rec\nipes", "a character that cannot be seen"),
        ("~/Documents/rec\x00ipes", "a character that cannot be seen"),
        ("~/Documents/rec\u202eipes", "a character that cannot be seen"),
        ("~/Documents/rec\udcffipes", "a character that cannot be seen"),
        ("~/Documents/" + "x" * 300, "cannot be looked up"),
        ("~/Documents/" + "x/" * 5000, "it does not exist"),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_its_reason(world: World, written: str, why: str) -> None:
    assert why in world.refusal(written)


def test_a_folder_whose_name_only_begins_like_a_roots_is_not_in_it(world: World) -> None:
    world.folder("Documents-old")
    assert "no root of" in world.refusal("~/Documents-old")


def test_one_folder_that_is_refused_refuses_them_all(world: World) -> None:
    assert world.refusal("~/Documents/recipes", "~/private").startswith("~/private cannot be mounted: no root of")


@pytest.mark.parametrize("target", ["../private", "{person}/private", "/etc", "{person}/.local/share/pynchy/groups"])
def test_a_link_in_a_root_is_judged_by_what_it_leads_to(world: World, target: str) -> None:
    (world.person / "Documents/way-out").symlink_to(target.format(person=world.person))
    assert "cannot be mounted" in world.refusal("~/Documents/way-out")


def test_a_link_to_a_name_that_nobody_would_write_is_refused(world: World) -> None:
    world.folder("Documents/rec\nipes")
    (world.person / "Documents/link").symlink_to("rec\nipes")
    assert "a character that cannot be seen" in world.refusal("~/Documents/link")


def test_a_link_that_leads_to_itself_is_refused(world: World) -> None:
    (world.person / "Documents/loop").symlink_to("loop")
    assert "cannot be looked up" in world.refusal("~/Documents/loop")


def test_what_was_allowed_is_refused_once_it_has_become_a_link_to_elsewhere(world: World) -> None:
    assert world.mounts("~/Documents/letters")
    (world.person / "Documents/letters").rmdir()
    (world.person / "Documents/letters").symlink_to(world.person / "private")
    assert "no root of" in world.refusal("~/Documents/letters")


def test_a_root_that_has_become_a_link_to_elsewhere_opens_that_and_no_more(world: World) -> None:
    shutil.move(world.person / "Documents", world.person / "Papers")
    (world.person / "Documents").symlink_to("private")
    assert "no root of" in world.refusal("~/Papers/recipes")
    assert world.mounts("~/private")


def test_more_mounts_than_anybody_needs_are_refused(world: World) -> None:
    assert "32 extra mounts" in world.refusal(*(f"~/Documents/{number}" for number in range(33)))


# --- the allowlist ------------------------------------------------------------------------------------------


def test_without_an_allowlist_nothing_is_mounted_and_the_sentence_says_what_to_write(world: World) -> None:
    (world.home / "mounts.toml").unlink()
    sentence = world.refusal("~/Documents/recipes")
    assert sentence.startswith(f"nothing can be mounted, for there is no {world.home / 'mounts.toml'}; ")
    assert "`[[root]]`" in sentence
    assert '`path = "~/Documents"`' in sentence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[root]\n", "at line 1"),
        ("x = " + "[" * 50_000, "too many brackets"),
        ("x = " + "1" * 10_000, "limit"),
        ("\udcff", "decode"),
        ("# " + "x" * 70_000, "65536 bytes"),
        ("blocked = '*.txt'", "`blocked` is no list"),
        ("blocked = [1]", "`blocked` is no list"),
        ("blocked = ['']", "`blocked` is no list"),
        ("blocked = ['a/b/c']", "`blocked` is no list"),
        ("allow = []", "'allow'"),
        ("root = '~/Documents'", "`[[root]]`"),
        ("root = ['~/Documents']", "`[[root]]`"),
        ("[root]\npath = '~/Documents'", "`[[root]]`"),
        ("[[root]]", "no `path`"),
        ("[[root]]\npath = 1", "no `path`"),
        ("[[root]]\npath = '~/Documents'\nwrite = true", "`write`"),
        ("[[root]]\npath = '~/Documents'\nwrite = ['all']", "`write`"),
        ("[[root]]\npath = '~/Documents'\nwrite = 'All'", "`write`"),
        ("[[root]]\npath = '~/Documents'\nreadonly = false", "'readonly'"),
        ("[[root]]\npath = 'Documents'", "begins with"),
        ("[[root]]\npath = '~/Documents/recipes/soup.txt'", "no folder"),
        ("[[root]]\npath = '/'", "too wide"),
        ("[[root]]\npath = '//'", "too wide"),
        ("[[root]]\npath = '/usr/..'", "too wide"),
        ("[[root]]\npath = '~'", "too wide"),
        ("[[root]]\npath = '~/'", "too wide"),
        ("[[root]]\npath = '~/Documents/..'", "too wide"),
        ("[[root]]\npath = '~/..'", "too wide"),
        ("[[root]]\npath = '/etc'", "too wide"),
        ("[[root]]\npath = '/usr/share'", "too wide"),
        ("[[root]]\npath = '/var'", "too wide"),
        ("[[root]]\npath = '/opt'", "too wide"),
        ("[[root]]\npath = '/proc/self'", "too wide"),
        ("[[root]]\npath = '/dev/shm'", "too wide"),
    ],
)
def test_an_allowlist_with_a_fault_allows_nothing_and_says_which(world: World, text: str, why: str) -> None:
    # Behind a root that would do.
    before = "" if text.startswith("root") or "[root]" in text else _ANYTHING
    (world.home / "mounts.toml").write_bytes(f"{text}\n{before}".encode("utf-8", "surrogateescape"))
    sentence = world.refusal("~/Documents/recipes")
    assert sentence.startswith(f"nothing can be mounted, for {world.home / 'mounts.toml'} is not as it must be: ")
    assert why in sentence


def test_a_root_that_is_a_link_to_the_home_is_too_wide(world: World) -> None:
    (world.person / "Documents/all").symlink_to(world.person)
    world.allow('[[root]]\npath = "~/Documents/all"\n')
    assert "too wide" in world.refusal("~/Documents/recipes")


def test_a_root_that_is_not_there_changes_nothing_for_the_others(world: World) -> None:
    world.allow(f'[[root]]\npath = "/media/nobody/stick"\n{_ANYTHING}')
    assert world.mounts("~/Documents/recipes")


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_link, "it is no regular file"),
        (_pipe, "it is no regular file"),
        (_directory, "it is no regular file"),
        (lambda path: path.chmod(0o620), "chmod go-w"),
        (lambda path: path.chmod(0o602), "chmod go-w"),
        pytest.param(lambda path: os.chown(path, 1234, 0), "belongs to another user, uid 1234", marks=as_root),
        pytest.param(lambda path: path.chmod(0), "Permission denied", marks=as_a_user),
    ],
)
def test_an_allowlist_that_others_might_have_written_allows_nothing(
    world: World, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(world.home / "mounts.toml")
    assert why in world.refusal("~/Documents/recipes")


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "main", "others"),
    [("", False, False), ("none", False, False), ("main", True, False), ("all", True, True)],
)
def test_who_may_write_is_said_by_the_root(world: World, write: str, main: bool, others: bool) -> None:
    world.allow('[[root]]\npath = "~/Documents"\n' + (f'write = "{write}"\n' if write else ""))
    for is_main, allowed in ((True, main), (False, others)):
        assert world.mounts("~/Documents/recipes", is_main=is_main)[0].readonly
        if allowed:
            assert not world.mounts("~/Documents/recipes:rw", is_main=is_main)[0].readonly
        else:
            assert f'`write = "{write or "none"}"`' in world.refusal("~/Documents/recipes:rw", is_main=is_main)


@pytest.mark.parametrize("outer_first", [True, False])
def test_of_two_roots_around_a_folder_the_nearer_says_who_may_write(world: World, outer_first: bool) -> None:
    roots = [_ANYTHING, '[[root]]\npath = "~/Documents/recipes"\n']
    world.allow("".join(roots if outer_first else reversed(roots)))
    assert 'recipes has `write = "none"`' in world.refusal("~/Documents/recipes/soups:rw")
    assert world.mounts("~/Documents/letters:rw")
    roots = ['[[root]]\npath = "~/Documents"\n', _ANYTHING.replace("Documents", "Documents/recipes")]
    world.allow("".join(roots if outer_first else reversed(roots)))
    assert 'Documents has `write = "none"`' in world.refusal("~/Documents/letters:rw")
    assert world.mounts("~/Documents/recipes/soups:rw")


def test_what_may_not_be_written_is_not_written_by_way_of_a_folder_above(world: World) -> None:
    world.allow(_ANYTHING + '[[root]]\npath = "~/Documents/recipes"\n')
    assert 'recipes has `write = "none"`' in world.refusal("~/Documents:rw")
    assert world.mounts("~/Documents")


def test_programs_that_the_host_runs_are_never_mounted_for_writing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Documents/plugin/src/pigeons", "Documents/other"):
        world.folder(name)
    monkeypatch.syspath_prepend(str(world.person / "Documents/plugin/src"))
    for folder in ("plugin", "plugin/src", "plugin/src/pigeons"):
        assert "programs of Pynchy's" in world.refusal(f"~/Documents/{folder}:rw")
        assert world.mounts(f"~/Documents/{folder}")
    assert world.mounts("~/Documents/other:rw")


def test_the_environment_that_agents_run_in_is_never_mounted_for_writing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(world.folder("Documents/environment")))
    assert "programs of Pynchy's" in world.refusal("~/Documents/environment:rw")


# --- beside folders that agents can write -------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["another", "its own"])
@pytest.mark.parametrize("writes", ["~/Documents", "~/Documents/recipes/soups", "~/soups"])
def test_nothing_in_or_around_a_folder_that_an_agent_writes_is_mounted(world: World, whose: str, writes: str) -> None:
    (world.person / "soups").symlink_to("Documents/recipes/soups")
    if whose == "another":
        sentence = world.refusal("~/Documents/recipes", others=(group("work", f"{writes}:rw"),))
        assert "which the agent of work can write" in sentence
    else:
        assert "overlaps with" in world.refusal("~/Documents/recipes", f"{writes}:rw")


def test_the_very_folder_that_another_agent_writes_can_be_mounted(world: World) -> None:
    for mode in ("", ":rw"):
        (mount,) = world.mounts(f"~/Documents/recipes{mode}", others=(group("work", "~/Documents/recipes:rw"),))
        assert mount.readonly == (not mode)


def test_what_other_agents_only_read_is_in_nobodys_way(world: World) -> None:
    assert world.mounts("~/Documents/recipes/soups:rw", others=(group("work", "~/Documents", "~/private"),))


def test_a_group_is_judged_by_what_it_is_to_be_and_not_by_what_it_was(world: World) -> None:
    before = group("family", "~/Documents:rw")
    after = group("family", "~/Documents/recipes")
    assert extra_mounts(world.home, after, (before, group("work", "~/nowhere:rw", "nothing:rw")))


def test_a_link_that_an_agent_could_have_planted_is_not_followed(world: World) -> None:
    (world.person / "Documents/letters/planted").symlink_to(world.person / "Documents/recipes")
    sentence = world.refusal("~/Documents/letters/planted", others=(group("work", "~/Documents/letters:rw"),))
    assert "which the agent of work can write" in sentence
    (world.home / "groups/family/planted").symlink_to(world.person / "Documents/recipes")
    assert "Pynchy keeps its own things" in world.refusal(str(world.home / "groups/family/planted"))


@pytest.mark.parametrize("planted", ["Documents/letters/planted", ".local/share/pynchy/groups/family/planted"])
def test_a_root_that_an_agent_could_have_moved_opens_nothing(world: World, planted: str) -> None:
    (world.person / planted).symlink_to(world.person / "private")
    (world.person / "way").symlink_to(planted)
    world.allow(f'{_ANYTHING}[[root]]\npath = "~/way"\n')
    assert "no root of" in world.refusal("~/private", others=(group("work", "~/Documents/letters:rw"),))


@pytest.mark.parametrize(("first", "second"), [("", "/recipes"), ("/recipes", ""), ("/recipes", "/recipes/")])
def test_mounts_of_one_group_do_not_overlap(world: World, first: str, second: str) -> None:
    assert "overlaps with" in world.refusal(f"~/Documents{first}", f"~/Documents{second}")


# --- other users of the machine -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
@pytest.mark.parametrize("part", ["Documents", "Documents/recipes"])
def test_a_folder_that_others_can_move_or_fill_is_refused(world: World, part: str, mode: int) -> None:
    if mode == 0o775:
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder to any group")
        os.chown(world.person / part, 0, 1234)
    (world.person / part).chmod(mode)
    assert f"can write {world.person / part}" in world.refusal("~/Documents/recipes")


def test_where_others_may_only_add_a_folder_is_safe(world: World) -> None:
    (world.person / "Documents").chmod(0o1777)
    assert world.mounts("~/Documents/recipes")


def test_a_group_of_roots_or_of_this_user_alone_is_nobody_else(world: World) -> None:
    if places._private_group() != os.getegid():
        pytest.skip("this user shares its group with others")
    (world.person / "Documents").chmod(0o775)
    assert world.mounts("~/Documents/recipes")


@as_root
@pytest.mark.parametrize("part", ["Documents", "Documents/recipes"])
def test_what_belongs_to_another_user_is_refused(world: World, part: str) -> None:
    os.chown(world.person / part, 1234, 1234)
    assert f"{world.person / part} belongs to another user, uid 1234" in world.refusal("~/Documents/recipes")


@as_root
def test_a_link_of_another_users_is_refused(world: World) -> None:
    (world.person / "Documents").chmod(0o1777)
    (world.person / "Documents/link").symlink_to("recipes")
    os.chown(world.person / "Documents/link", 1234, 1234, follow_symlinks=False)
    assert "Documents/link belongs to another user" in world.refusal("~/Documents/link")


@as_root
def test_a_root_that_another_user_can_move_opens_nothing(world: World) -> None:
    (world.person / "tmp").mkdir(mode=0o777)
    (world.person / "tmp").chmod(0o777)
    (world.person / "tmp/root").symlink_to(world.person / "private")
    world.allow('[[root]]\npath = "~/tmp/root"\n')
    assert "no root of" in world.refusal("~/private")


@as_root
def test_under_a_root_host_a_folder_may_be_the_agents_own_and_must_be_of_use_to_it(world: World) -> None:
    def mounts(mode: str) -> tuple[VolumeMount, ...]:
        one = group("family", f"~/Documents/recipes{mode}")
        return extra_mounts(world.home, one, [one], owner=(60999, 60999))

    recipes = world.person / "Documents/recipes"
    assert mounts("")
    with pytest.raises(MountRefused, match="agents run as uid 60999, which may not write it"):
        mounts(":rw")
    recipes.chmod(0o700)
    with pytest.raises(MountRefused, match="agents run as uid 60999, which may not read it"):
        mounts("")
    os.chown(recipes, 60999, 60999)
    assert mounts("")
    assert mounts(":rw")
    os.chown(recipes.parent, 60999, 60999)
    with pytest.raises(MountRefused, match="Documents belongs to another user, uid 60999"):
        mounts("")


# --- secrets ------------------------------------------------------------------------------------------------

_SECRET = """
.ssh .SSH .aws .azure .gnupg .kube .docker .netrc .npmrc .pypirc .git-credentials .env .env.production .ENV credentials
credentials.json application_default_credentials.json server.pem Server.PEM tls.key id_rsa id_rsa.old id_ed25519 a.p12
a.pfx passwords.kdbx login.keychain-db .password-store .mozilla .claude .bash_history .config/gcloud .config/gh
""".split()  # noqa: SIM905 - one a line would be a page
_HARMLESS = ".env.example .env.template cacert.pem environment ssh keyboard.txt envelope gcloud gh claude".split()  # noqa: SIM905


@pytest.mark.parametrize("name", _SECRET)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_folder_with_a_secret_anywhere_in_it_is_refused(world: World, name: str, kind: str) -> None:
    path = world.person / "Documents/recipes/soups/deep" / name
    path.parent.mkdir(parents=True)
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to("nowhere")}[kind]()
    assert f"{path} has a name that stands for secrets" in world.refusal("~/Documents/recipes")


@pytest.mark.parametrize("name", _SECRET)
def test_a_folder_that_is_a_secret_or_lies_in_one_is_refused(world: World, name: str) -> None:
    path = world.folder(f"Documents/{name}/inside")
    for one in (path, path.parent):
        assert f"{path.parent.name} is a name that stands for secrets" in world.refusal(str(one))


def test_a_secret_is_refused_by_the_name_of_a_link_to_it_and_of_what_a_link_leads_to(world: World) -> None:
    (world.person / "Documents/.aws").symlink_to("recipes")
    assert ".aws is a name that stands for secrets" in world.refusal("~/Documents/.aws")
    world.folder("Documents/.gnupg")
    (world.person / "Documents/harmless").symlink_to(".gnupg")
    assert ".gnupg is a name that stands for secrets" in world.refusal("~/Documents/harmless")


@pytest.mark.parametrize("name", _HARMLESS)
def test_what_is_only_called_alike_is_no_secret(world: World, name: str) -> None:
    (world.person / "Documents/recipes" / name).touch()
    assert world.mounts("~/Documents/recipes")


def test_the_allowlist_can_name_more_that_nobody_sees(world: World) -> None:
    (world.person / "Documents/recipes/Grandma.SECRET").touch()
    (world.person / "Documents/letters/tax").mkdir()
    assert world.mounts("~/Documents")
    for pattern, folder in (("*.secret", "recipes"), ("letters/t?x", "letters"), ("RECIPES", "recipes")):
        world.allow(f'blocked = ["{pattern}"]\n{_ANYTHING}')
        assert "stands for secrets" in world.refusal(f"~/Documents/{folder}")
        assert world.mounts(f"~/Documents/{'letters' if folder == 'recipes' else 'recipes'}")


def test_a_template_can_still_be_named_by_the_allowlist(world: World) -> None:
    (world.person / "Documents/recipes/.env.example").touch()
    world.allow(f'blocked = [".env.example"]\n{_ANYTHING}')
    assert "stands for secrets" in world.refusal("~/Documents/recipes")


def test_a_name_that_an_agent_chose_says_nothing_else_in_the_sentence(world: World) -> None:
    (world.person / "Documents/recipes/\x1b[2J\nall is well\u202e.pem").touch()
    sentence = world.refusal("~/Documents/recipes")
    assert sentence.isprintable()
    assert "?[2J?all is well?.pem" in sentence


# --- what lies beneath --------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have some hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device can be made here")


@pytest.mark.parametrize("make", [_socket, _device, os.mkfifo])
def test_a_way_to_a_program_of_the_hosts_is_refused_itself_and_beneath(
    world: World, make: Callable[[Path], None]
) -> None:
    path = world.person / "Documents/recipes/soups/way"
    make(path)
    assert "it is no folder" in world.refusal(str(path))
    assert f"{path} is a socket, a pipe or a device" in world.refusal("~/Documents/recipes")


def test_a_link_beneath_is_not_followed(world: World) -> None:
    (world.person / "private/id_rsa").touch()
    (world.person / "Documents/recipes/elsewhere").symlink_to(world.person / "private")
    (world.person / "Documents/recipes/round").symlink_to(".")
    assert world.mounts("~/Documents/recipes")


def test_more_than_can_be_checked_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_security, "_MOST_ENTRIES", 4)
    for name in ("a", "b"):
        (world.person / f"Documents/letters/{name}").touch()
    assert world.mounts("~/Documents/letters", "~/Documents/recipes")
    (world.person / "Documents/recipes/soups/c").touch()
    assert "too much in it to be checked" in world.refusal("~/Documents/letters", "~/Documents/recipes")


def test_what_takes_too_long_to_be_checked_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_security, "_CHECKED_WITHIN", -1.0)
    assert "too much in it to be checked" in world.refusal("~/Documents/recipes")


def test_folders_that_are_too_deep_are_refused(world: World) -> None:
    world.folder("Documents/recipes/" + "/".join("d" * 60))
    assert "too much in it to be checked" in world.refusal("~/Documents/recipes")


@as_a_user
def test_a_folder_that_cannot_be_read_is_refused(world: World) -> None:
    soups = world.person / "Documents/recipes/soups"
    soups.chmod(0)
    try:
        assert "cannot be looked through (Permission denied)" in world.refusal("~/Documents/recipes")
    finally:
        soups.chmod(0o755)


def test_another_file_system_beneath_is_refused(world: World) -> None:
    soups = world.person / "Documents/recipes/soups"
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(soups)], capture_output=True, text=True)
    if done.returncode:
        missing("mount", done.stderr.strip())
    try:
        assert f"{soups} is another file system" in world.refusal("~/Documents/recipes")
        assert world.mounts("~/Documents/recipes/soups")
    finally:
        subprocess.run(["umount", str(soups)], check=True)


# --- races --------------------------------------------------------------------------------------------------


@contextmanager
def swapping(folder: Path, other: Path) -> Iterator[None]:
    """A folder that is a link to the other every other moment."""
    away, over = folder.with_name("away"), threading.Event()

    def swap() -> None:
        while not over.is_set():
            folder.rename(away)
            folder.symlink_to(other)
            folder.unlink()
            away.rename(folder)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("asked", ["Documents/recipes", "Documents/recipes/soups"])
def test_whatever_is_swapped_meanwhile_only_what_was_allowed_is_returned(world: World, asked: str) -> None:
    world.folder("private/soups")
    until = time.monotonic() + 5
    outcomes: Counter[str] = Counter()
    with swapping(world.person / "Documents/recipes", world.person / "private"):
        while time.monotonic() < until and (len(outcomes) < 2 or outcomes.total() < 300):
            try:
                (mount,) = world.mounts(f"~/{asked}")
                outcomes[mount.host_path] += 1
            except MountRefused:
                outcomes["refused"] += 1
    assert outcomes.keys() <= {str(world.person / asked), "refused"}


@pytest.mark.parametrize("moment", ["before", "after", "meanwhile"])
def test_a_folder_that_becomes_another_while_it_is_checked_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, away, check = world.person / "Documents/recipes", world.person / "away", mount_security._Survey.check

    def swap_and_check(*args: Any) -> None:
        if moment == "after":
            check(*args)
        folder.rename(away)
        folder.mkdir()
        if moment != "after":
            check(*args)
        if moment == "meanwhile":
            folder.rmdir()
            away.rename(folder)

    monkeypatch.setattr(mount_security._Survey, "check", swap_and_check)
    assert "changes while it is checked" in world.refusal("~/Documents/recipes")


def test_a_folder_beneath_that_becomes_a_link_is_not_entered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.person / "private/id_rsa").touch()
    soups = world.person / "Documents/recipes/soups"
    judge = blocked_names.BlockedNames.blocked

    def swap_and_judge(names: blocked_names.BlockedNames, above: str, name: str) -> bool:
        if name == "soups" and not soups.is_symlink():
            soups.rmdir()
            soups.symlink_to(world.person / "private")
        return judge(names, above, name)

    monkeypatch.setattr(blocked_names.BlockedNames, "blocked", swap_and_judge)
    sentence = world.refusal("~/Documents/recipes")
    assert "cannot be looked through" in sentence
    assert "id_rsa" not in sentence


# --- anything at all ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world for many examples."""
    world = build(tmp_path_factory.mktemp("person"))
    world.allow(f'[[root]]\npath = "{world.person}/Documents"\n')
    return world


@given(st.lists(st.text(max_size=30), max_size=4).map("/".join))
def test_any_path_is_mounted_or_refused(lasting: World, written: str) -> None:
    for path in (written, f"{lasting.person}/Documents/{written}"):
        with suppress(MountRefused):
            for mount in lasting.mounts(path):
                assert Path(mount.host_path).is_relative_to(lasting.person / "Documents")
                assert Path(mount.host_path).resolve() == Path(mount.host_path)


@given(st.text(min_size=1, max_size=40))
def test_a_folder_of_any_name_is_mounted_or_refused(lasting: World, name: str) -> None:
    path = lasting.person / "Documents/any" / name.replace("/", "-")
    try:
        path.mkdir(parents=True)
    except (OSError, ValueError):
        return
    try:
        (mount,) = lasting.mounts(str(path))
        assert mount.host_path == str(path)
        inside = mount.container_path.removeprefix("/workspace/extra/")
        assert inside
        assert inside[0] not in ".-"
        assert all(one.isalnum() or one in "._-" for one in inside)
    except MountRefused:
        pass
    finally:
        shutil.rmtree(lasting.person / "Documents/any")


_WORDS = [
    "blocked",
    "root",
    "path",
    "write",
    "[[root]]",
    "=",
    "'~/Documents'",
    "'all'",
    "[",
    "]",
    "'*'",
    "1",
    "\n",
    "true",
]


@given(st.text(max_size=60) | st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join))
def test_any_allowlist_is_read_or_refused(lasting: World, text: str) -> None:
    before = (lasting.home / "mounts.toml").read_text()
    (lasting.home / "mounts.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with suppress(MountRefused):
            assert not lasting.mounts(f"{lasting.person}/Documents/recipes")
    finally:
        lasting.allow(before)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=10), max_size=5))
def test_any_pattern_is_taken_as_one_or_refused(lasting: World, patterns: list[str]) -> None:
    names = [pattern for pattern in patterns if pattern.count("/") < 2]
    found = blocked_names.BlockedNames(names)
    for name in names:
        if not set(name) & set("*?[/"):
            assert found.blocked("above", name)


# --- inside -------------------------------------------------------------------------------------------------


def test_inside_a_mount_is_what_it_was_asked_to_be_and_nothing_beside_it_is_there(runtime: ContainerRuntime) -> None:
    user = (60999, 60999) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    bench = Bench(runtime, agent_image(), user)
    try:
        world = build(bench.place / "person")
        world.allow(f'[[root]]\npath = "{world.person}/Documents"\nwrite = "all"\n')
        documents = world.person / "Documents"
        for name in ("read, only", "written", "neighbour"):
            (world.folder(f"Documents/{name}") / "file").write_text("as it was")
            (documents / name / "file").chmod(0o666)
        if os.geteuid() == 0:
            for name in ("read, only", "written"):
                os.chown(documents / name, *user)
        one = group("family", f"{documents}/read, only", f"{documents}/written:rw")
        reading, writing = mounts = extra_mounts(world.home, one, [one], user)

        assert bench.ask(probe.alter, *mounts, arguments={"directory": reading.container_path}) == []
        altered = bench.ask(probe.alter, *mounts, arguments={"directory": writing.container_path})
        assert "a file was created" in altered
        assert (documents / "written/new").stat().st_uid == user[0]
        beside = [f"/workspace/extra/{name}" for name in ("neighbour", "written/../neighbour", "recipes")]
        paths = [reading.container_path, *beside, str(documents), str(documents / "neighbour")]
        assert bench.ask(probe.exists, *mounts, arguments={"paths": paths}) == [reading.container_path]
    finally:
        bench.close()
