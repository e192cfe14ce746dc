"""Settings: where each value comes from, what is refused and how that is said, and what is never shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pynchy.config import MODEL_VARIABLES, Settings, SettingsError, load_settings

CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


@pytest.fixture(autouse=True)
def environment_as_before(clean_environment: None) -> Iterator[None]:
    """Loading settings changes the environment, by design; after each test it is as it was."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def dotenv(tmp_path: Path) -> Callable[[str], None]:
    """Write the `.env` of this test's home."""

    def write(text: str) -> None:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        (home / ".env").write_text(text)

    return write


def secret(settings: Settings, name: str) -> str | None:
    value = getattr(settings, name.lower())
    return value and value.get_secret_value()


# --- where values come from ---------------------------------------------------------------------------------


def test_without_anything_set_there_are_defaults_and_no_model() -> None:
    settings = load_settings()
    assert settings.assistant_name == "Pynchy"
    assert settings.max_concurrent_containers == 5
    assert not settings.has_model
    assert settings.model is None


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(
    dotenv: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dotenv("PYNCHY_ASSISTANT_NAME=File\nPYNCHY_IDLE_TIMEOUT=7\nANTHROPIC_API_KEY='from the file'\n")
    monkeypatch.setenv("PYNCHY_ASSISTANT_NAME", "Environment")
    settings = load_settings()
    assert settings.assistant_name == "Environment"
    assert settings.idle_timeout == 7
    assert secret(settings, "ANTHROPIC_API_KEY") == "from the file"
    assert settings.log_level == "info"


def test_the_file_is_loaded_into_the_environment_for_plugins_too(dotenv: Callable[[str], None]) -> None:
    dotenv("# a comment\nexport TELEGRAM_BOT_TOKEN=\"12:34\"\nPYNCHY_TELEGRAM_CHATS='a b'\n")
    load_settings()
    assert os.environ["TELEGRAM_BOT_TOKEN"] == "12:34"
    assert os.environ["PYNCHY_TELEGRAM_CHATS"] == "a b"


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("MAX_CONCURRENT_CONTAINERS", "12", "max_concurrent_containers", 12),
        ("PYNCHY_AGENT_TIMEOUT", "2.5", "agent_timeout", 2.5),
        ("PYNCHY_START_TIMEOUT", "3", "start_timeout", 3),
        ("PYNCHY_AGENT_UID", "1234", "agent_uid", 1234),
        ("PYNCHY_LOG_LEVEL", "debug", "log_level", "debug"),
        ("ANTHROPIC_MODEL", "claude-x", "model", "claude-x"),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:1", "anthropic_base_url", "http://127.0.0.1:1"),
    ],
)
def test_each_setting_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    assert getattr(load_settings(), field) != expected
    monkeypatch.setenv(variable, value)
    assert getattr(load_settings(), field) == expected


@pytest.mark.parametrize("variable", [*CREDENTIALS, "ANTHROPIC_BASE_URL"])
def test_a_credential_or_an_endpoint_is_a_model(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://something")
    assert load_settings().has_model


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_model_variable_means_the_same_as_none(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    for name in MODEL_VARIABLES:
        monkeypatch.setenv(name, empty)
    settings = load_settings()
    assert not settings.has_model
    assert settings.model is None
    assert not set(MODEL_VARIABLES) & set(os.environ)


@pytest.mark.parametrize(
    "variable",
    ["PYNCHY_ASSISTANT_NAME", "PYNCHY_IDLE_TIMEOUT", "PYNCHY_LOG_LEVEL", "MAX_CONCURRENT_CONTAINERS"],
)
def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    default = load_settings()
    monkeypatch.setenv(variable, "")
    assert load_settings() == default


# --- the home -----------------------------------------------------------------------------------------------


def test_the_home_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, expected in (("/a/b", "/a/b"), ("~/mine", f"{tmp_path}/mine"), ("here", f"{tmp_path}/here")):
        monkeypatch.setenv("PYNCHY_HOME", name)
        assert load_settings().home == Path(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another place for data")
@pytest.mark.parametrize("given", [None, "", "  "])
def test_without_a_name_the_home_is_in_the_users_data_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None
) -> None:
    if given is None:
        monkeypatch.delenv("PYNCHY_HOME")
    else:
        monkeypatch.setenv("PYNCHY_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert load_settings().home == tmp_path / ".local/share/pynchy"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert load_settings().home == tmp_path / "data/pynchy"
    (tmp_path / "data/pynchy").mkdir(parents=True)
    (tmp_path / "data/pynchy/.env").write_text("PYNCHY_ASSISTANT_NAME=Found")
    assert load_settings().assistant_name == "Found"


def test_loading_makes_no_directory(tmp_path: Path) -> None:
    load_settings()
    assert not (tmp_path / "home").exists()


# --- the demo -----------------------------------------------------------------------------------------------


def test_a_demo_forgets_every_model_variable_wherever_it_was_set(
    dotenv: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(MODEL_VARIABLES) // 2
    dotenv("PYNCHY_ASSISTANT_NAME=Demo\n" + "".join(f"{name}=http://in.the.file\n" for name in MODEL_VARIABLES[half:]))
    for name in MODEL_VARIABLES[:half]:
        monkeypatch.setenv(name, "http://in.the.environment")
    settings = load_settings(demo=True)
    assert settings.assistant_name == "Demo"
    assert not settings.has_model
    assert settings.model is None
    assert all(secret(settings, name) is None for name in CREDENTIALS)
    assert not set(MODEL_VARIABLES) & set(os.environ), "nor can anyone else in this process read one"


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MAX_CONCURRENT_CONTAINERS", "0"),
        ("MAX_CONCURRENT_CONTAINERS", "1001"),
        ("MAX_CONCURRENT_CONTAINERS", "many"),
        ("MAX_CONCURRENT_CONTAINERS", "2.5"),
        ("PYNCHY_IDLE_TIMEOUT", "0"),
        ("PYNCHY_IDLE_TIMEOUT", "-1"),
        ("PYNCHY_IDLE_TIMEOUT", "ten"),
        ("PYNCHY_IDLE_TIMEOUT", "nan"),
        ("PYNCHY_AGENT_TIMEOUT", "0"),
        ("PYNCHY_START_TIMEOUT", "0"),
        ("PYNCHY_LOG_LEVEL", "loud"),
        ("PYNCHY_ASSISTANT_NAME", "x" * 61),
        ("PYNCHY_AGENT_UID", "0"),
        ("PYNCHY_AGENT_UID", str(2**31 - 1)),
    ],
)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_value_that_cannot_be_used_is_an_error_with_its_name_and_value(
    monkeypatch: pytest.MonkeyPatch, dotenv: Callable[[str], None], source: str, variable: str, value: str
) -> None:
    if source == "file":
        dotenv(f"{variable}={value}")
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}='{value}' cannot be used: .*should"):
        load_settings()


@pytest.mark.parametrize("content", [b"A=\xff\xfe\n", b"A=a\x00b\n"], ids=["not utf-8", "zero byte"])
def test_a_file_that_is_no_text_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"home/\.env cannot be read"):
        load_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().assistant_name = "Other"


# --- the rest -----------------------------------------------------------------------------------------------


@given(st.floats(0.001, 1e9), st.floats(0.001, 1e9))
def test_an_answer_may_always_take_longer_than_an_agent_may_be_idle(idle: float, answer: float) -> None:
    settings = Settings.model_validate({"idle_timeout": idle, "agent_timeout": answer})
    assert settings.hard_timeout > settings.idle_timeout
    assert settings.hard_timeout >= settings.agent_timeout
    assert settings.hard_timeout in (answer, idle + 60)


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.setenv(name, f"sk-secret-{name}")
    settings = load_settings()
    assert [secret(settings, name) for name in CREDENTIALS] == [f"sk-secret-{name}" for name in CREDENTIALS]
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert "sk-secret" not in shown
    monkeypatch.setenv("PYNCHY_IDLE_TIMEOUT", "never")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "sk-secret" not in str(refused.value)


def test_an_empty_variable_does_not_hide_the_one_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.env").write_text("ANTHROPIC_API_KEY=sk-of-the-file\n")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    key = load_settings().anthropic_api_key
    assert key is not None
    assert key.get_secret_value() == "sk-of-the-file"
