"""The names that no agent sees, wherever they are: those of keys, passwords and what logs in to services."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterable

#: Names that no agent sees, wherever they are, in `fnmatch`'s patterns; `PARENT/NAME` for one that is common elsewhere.
ALWAYS = (
    # keys
    *(".ssh", ".gnupg", ".gpg", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.ppk"),
    *("*.p12", "*.pfx", "*.jks", "*.keystore"),
    # passwords and wallets
    *("*.kdbx", "*.kdb", ".password-store", "*keychain*", "share/keyrings", "*.keyring"),
    *("wallet.dat", ".bitcoin", ".electrum"),
    # what logs in to services
    *(".aws", ".azure", ".kube", ".docker", ".oci", ".config/gcloud", ".config/gh", ".config/op", ".config/rclone"),
    *(".terraform.d", ".vault-token", ".boto", ".s3cfg", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".my.cnf"),
    *(".git-credentials", ".htpasswd", ".env", ".env.*", ".envrc", "credentials*", "*_credentials.json"),
    *("client_secret*.json", "*.ovpn"),
    # what was done and said
    *(".mozilla", ".thunderbird", ".config/google-chrome", ".config/chromium", ".config/bravesoftware"),
    *("google/chrome", "application support/firefox", ".*_history", ".claude", ".claude.json", ".codex"),
)
#: Of these, what holds no secret: templates, and the certificates of public authorities.
HARMLESS = (".env.example", ".env.sample", ".env.template", ".env.dist", "cacert.pem")


class BlockedNames:
    """The names that no agent sees: the ones of always, and `more` patterns."""

    def __init__(self, more: Iterable[str]) -> None:
        self._always, self._more, self._harmless = _pattern(ALWAYS), _pattern(more), _pattern(HARMLESS)

    def blocked(self, above: str, name: str) -> bool:
        """Whether something of this name, in a folder of that, is nothing for an agent."""
        path = unicodedata.normalize("NFC", f"{above}/{name}")
        return bool(self._more(path) or (self._always(path) and not self._harmless(path)))


def _pattern(names: Iterable[str]) -> Callable[[str], object]:
    """What finds `PARENT/NAME` that is one of these, in any case."""
    patterns = (name if "/" in name else f"*/{name}" for name in names)
    either = "|".join(fnmatch.translate(unicodedata.normalize("NFC", one)) for one in patterns)
    return re.compile(either or r"(?!)", re.IGNORECASE).match
