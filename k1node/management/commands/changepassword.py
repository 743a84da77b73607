"""Django's own, with a line in the audit log."""

import getpass
from typing import Any

from django.contrib.auth.management.commands import changepassword

from k1node.audit import trail


class Command(changepassword.Command):
    def handle(self, *args: Any, **options: Any) -> str | None:
        said: str | None = super().handle(*args, **options)
        name = options["username"] or getpass.getuser()
        trail.record("password.changed", f"user:{name}", by="changepassword")
        return said
