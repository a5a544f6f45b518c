"""A server with an access file, and its callers."""

from __future__ import annotations

from pathlib import Path

from gradwire.server.access.access_file import digest_of

ROLES = ("observe", "read", "contribute", "train", "admin")


def secret_of(name: str) -> str:
    return f"gw_secret-of-{name}"


def two_tenants(folder: Path) -> AccessFile:
    """A file with the tenants lab and other, and a token of the same name for each."""
    file = AccessFile(folder / "access.toml")
    file.add("lab", "lab")
    file.add("other", "other")
    return file


class AccessFile:
    """Tokens by their names; the secret of each is `secret_of` its name."""

    def __init__(self, path: Path, tenants: tuple[str, ...] = ("lab", "other")) -> None:
        self.path = path
        self._tenants = tenants
        self._tokens: dict[str, str] = {}
        self._more = ""
        self.quotas: dict[str, str] = {}
        """Lines of the table of a tenant; taken by `write`."""
        self.write()

    def add(self, name: str, tenant: str = "lab", role: str = "train", *lines: str, secret: str = "") -> str:
        """A token; returns its secret."""
        secret = secret or secret_of(name)
        self._tokens[name] = "\n".join(
            [
                "[[tokens]]",
                *(
                    f'{key} = "{value}"'
                    for key, value in (("id", name), ("sha256", digest_of(secret)), ("tenant", tenant), ("role", role))
                ),
                *lines,
            ]
        )
        self.write()
        return secret

    def remove(self, name: str) -> None:
        del self._tokens[name]
        self.write()

    def add_certificate(self, name: str, tenant: str, role: str) -> None:
        self._more += f'[[certificates]]\nsan = "{name}"\ntenant = "{tenant}"\nrole = "{role}"\n'
        self.write()

    def write(self) -> None:
        tenants = "\n".join(f"[tenants.{tenant}]\n{self.quotas.get(tenant, '')}" for tenant in self._tenants)
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text("\n\n".join([tenants, *self._tokens.values(), self._more]))
        unfinished.replace(self.path)
