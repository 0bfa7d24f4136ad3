"""Users of a template: the commands that make them, the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from builder.errors import UsageError
from builder.recipe.keys import Key, Type, between, matches
from builder.stage.members import wrong_path

_ID = between(1, 60000)

USERS = Key(
    "Users",
    Type.TABLES,
    "Users to make, each with a group of its name and a locked password.",
    keys=(
        Key(
            "Name",
            Type.TEXT,
            "Name of the user, and of the group.",
            required=True,
            check=matches("[a-z_][a-z0-9_-]{0,31}", "a user name (useradd(8))"),
        ),
        Key("Uid", Type.INT, "User id.", required=True, check=_ID),
        Key("Gid", Type.INT, "Group id; that of the user when not given.", default=0),
        Key(
            "Home", Type.TEXT, "Home folder, made with mode 0750 where there is none.", required=True, check=wrong_path
        ),
        Key("Shell", Type.TEXT, "Login shell.", default="/usr/sbin/nologin", check=wrong_path),
        Key("Groups", Type.TEXTS, "Further groups, which exist."),
        Key(
            "Comment",
            Type.TEXT,
            "Full name.",
            check=lambda value: "must have no ':' and no line break" if re.search("[:\n]", value) else None,
        ),
    ),
)


def check(users: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise UsageError when two users share a name or an id, or a group id is out of range."""
    for key in ("Name", "Uid"):
        seen: set[Any] = set()
        for user in users:
            if user[key] in seen:
                raise UsageError(f"Users has {key} {user[key]} twice", where=where)
            seen.add(user[key])
    for user in users:
        if user["Gid"] and (wrong := _ID(user["Gid"])):
            raise UsageError(f"Gid of user {user['Name']} {wrong}", where=where)


def commands(users: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The commands that make `users`, run as root of the template: groupadd(8), useradd(8), install(1).

    They write the day of a password's last change: see `builder.stage.debs.date_passwords`.
    """
    for user in users:
        name, gid = user["Name"], str(user["Gid"] or user["Uid"])
        yield ("groupadd", "--gid", gid, name)
        yield (
            "useradd",
            "--system",  # no aging, no subordinate ids, no mail box
            "--no-create-home",
            "--no-log-init",
            *("--uid", str(user["Uid"])),
            *("--gid", gid),
            *("--home-dir", user["Home"]),
            *("--shell", user["Shell"]),
            *("--comment", user["Comment"] or ""),
            *(("--groups", ",".join(user["Groups"])) if user["Groups"] else ()),
            name,
        )
        make_home = 'test -d "$1" || install -d -m 0750 -o "$2" -g "$3" "$1"'
        yield ("sh", "-c", make_home, "sh", user["Home"], name, gid)
