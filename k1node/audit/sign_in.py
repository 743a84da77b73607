"""Signing in at the console, with a line in the audit log for each try."""

from typing import Any

from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError

from k1node.audit import trail
from k1node.lib import origin


class SignInForm(AdminAuthenticationForm):
    """The admin's own form; a password that is wrong is folded by source and minute like every refusal."""

    def clean(self) -> dict[str, Any]:
        try:
            cleaned: dict[str, Any] = super().clean()
        except ValidationError as error:
            trail.refused("signin.refused", error.messages[0], name=str(self.cleaned_data.get("username", "")))
            raise
        user = self.get_user()
        if user is not None:
            origin.recognised(f"user:{user.pk}", user.get_username())
            trail.record("signin.succeeded", f"user:{user.get_username()}", by=user.get_username())
        return cleaned
