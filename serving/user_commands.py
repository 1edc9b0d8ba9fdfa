"""`phosphene users`, `audit` and `vault`: who may use a service, is its log intact, keys of what it keeps."""

import argparse
import json
import secrets
from collections.abc import Callable
from pathlib import Path

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_user_commands(add: AddCommand) -> None:
    """Declare the commands; ``add(name, run, text)`` makes one."""
    users = add("users", _run_action, "create groups of users with keys, scopes and quotas; add, revoke and list users")
    actions = users.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = _action(actions, "create-group", _create_group, "make a group be as a file describes; run again any time")
    create.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE", help="YAML of the group")
    create.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file that the service reads")
    for name, run, text in (
        ("add", _add, "give a user a key; one who has a key gets another instead"),
        ("revoke", _revoke, "take a user's key away; a running service notices with the next request"),
        ("list", _list, "list groups, users and the ids of their keys"),
    ):
        action = _action(actions, name, run, text)
        action.add_argument("--file", type=Path, required=True, metavar="FILE", help="the file that the service reads")
        if name != "list":
            action.add_argument("group")
            action.add_argument("user")

    audit = add("audit", _run_action, "check the audit log")
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = _action(actions, "verify", _verify, "tell whether any record was changed, moved or taken away")
    verify.add_argument("file", type=Path)
    verify.add_argument("--key", type=Path, metavar="FILE", help="the secret that the log was written with")
    verify.add_argument("--note", default="", metavar="N:HASH", help="what an earlier run told you to keep elsewhere")
    new_key = _action(actions, "new-key", _new_audit_key, "make a secret for access.audit_key_file")
    new_key.add_argument("file", type=Path)

    vault = add("vault", _run_action, "make the master key of what a service keeps of jobs")
    actions = vault.add_subparsers(dest="action", required=True, metavar="ACTION")
    new_key = _action(actions, "new-key", _new_master_key, "make a key for jobs.encryption.master_key_file")
    new_key.add_argument("file", type=Path)


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    action.set_defaults(run_action=run)
    return action


def _run_action(arguments: argparse.Namespace) -> int:
    status: int = arguments.run_action(arguments)
    return status


def _create_group(arguments: argparse.Namespace) -> int:
    from serving.user_groups import AccessFile, create_group, read_access_file, read_description, write_access_file

    wanted = read_description(arguments.source)
    before = read_access_file(arguments.out) if arguments.out.exists() else AccessFile()
    after, keys = create_group(before, wanted)
    if after != before:
        write_access_file(arguments.out, after)
    gone = sorted(set(before.groups[wanted.group].users) - set(wanted.users)) if wanted.group in before.groups else []
    if arguments.json:
        print(json.dumps({"group": wanted.group, "keys": keys, "revoked": gone}))
        return 0
    _print_keys(wanted.group, keys)
    print(
        f"group {wanted.group}: {len(wanted.users)} users, {len(keys)} new keys, revoked: {', '.join(gone) or 'none'}"
    )
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from serving.user_groups import add_user, read_access_file, write_access_file

    after, key = add_user(read_access_file(arguments.file), arguments.group, arguments.user)
    write_access_file(arguments.file, after)
    if arguments.json:
        print(json.dumps({"group": arguments.group, "keys": {arguments.user: key}}))
    else:
        _print_keys(arguments.group, {arguments.user: key})
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from serving.user_groups import read_access_file, revoke_user, write_access_file

    write_access_file(arguments.file, revoke_user(read_access_file(arguments.file), arguments.group, arguments.user))
    print(
        json.dumps({"revoked": arguments.user}) if arguments.json else f"{arguments.group}/{arguments.user} has no key"
    )
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from serving.user_groups import read_access_file

    access = read_access_file(arguments.file)
    if arguments.json:
        told = {name: group.model_dump(mode="json", exclude={"users"}) for name, group in access.groups.items()}
        for name, group in access.groups.items():
            told[name]["users"] = {user: key.id for user, key in group.users.items()}
        print(json.dumps(told))
        return 0
    for name, group in access.groups.items():
        print(f"{name}: may {', '.join(group.scopes) or 'nothing'}; {'shared' if group.shared else 'own'} jobs")
        for user, key in group.users.items():
            print(f"  {user}  key phk_{key.id}_...")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from serving.audit import read_audit_key, verify

    if not arguments.file.exists():
        raise ValueError(f"{arguments.file} does not exist, expected an audit log; name the one in access.audit_file")
    report = verify(arguments.file, read_audit_key(arguments.key) if arguments.key else None, arguments.note)
    if arguments.json:
        print(json.dumps({"first": report.first, "last": report.last, "fault": report.fault, "note": report.note}))
    elif report.fault:
        print(f"NOT as it was written: {report.fault}. Records up to {report.last} are good.")
    else:
        print(f"records {report.first} to {report.last} are as they were written, and none is missing")
        print(f"keep on another machine, for the next time: --note {report.note}" if report.note else "it is empty")
    return 1 if report.fault else 0


def _new_audit_key(arguments: argparse.Namespace) -> int:
    import os

    descriptor = os.open(arguments.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return _tell_key(arguments)


def _new_master_key(arguments: argparse.Namespace) -> int:
    from serving.vault import new_master_key

    new_master_key(arguments.file)
    return _tell_key(arguments)


def _tell_key(arguments: argparse.Namespace) -> int:
    print(
        json.dumps({"file": str(arguments.file)})
        if arguments.json
        else f"wrote {arguments.file}; keep it elsewhere too"
    )
    return 0


def _print_keys(group: str, keys: dict[str, str]) -> None:
    for user, key in keys.items():
        print(f"{group}/{user}  {key}")
    if keys:
        print("These keys are shown this once and stored nowhere; hand them over now.")
