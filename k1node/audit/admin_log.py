"""Changes made by forms of the console alone, which have no verb to write a record: users, apps, notice rules."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import construct_change_message
from django.db.models import Model, QuerySet
from django.forms import model_to_dict
from django.http import HttpRequest

from k1node.audit import trail

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object


def target_of(row: Model) -> str:
    return f"{row._meta.model_name}:{row}"


class AuditedAdmin(Base):
    """Writes the audit log where the admin writes its own history, which is in the transaction of the change."""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        _record(request, obj, "created", message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        _record(request, obj, "updated", message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for row in queryset:
            trail.record(f"{row._meta.model_name}.deleted", target_of(row), before=_facts(row))
        return super().log_deletions(request, queryset)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        # What was chosen, not only which fields were: who may do what is decided in these forms.
        # The form for a new password says "password" of its two fields.
        after = {name: _plain(form.cleaned_data.get(name, "changed")) for name in form.changed_data}
        before = None if add else {name: _plain(form.initial.get(name)) for name in after}
        request._audited = before, after  # type: ignore[attr-defined]
        return construct_change_message(form, formsets, add)


def _record(request: HttpRequest, row: Model, done: str, message: Any) -> None:
    before, after = request.__dict__.pop("_audited", (None, {"said": message} if message else None))
    trail.record(f"{row._meta.model_name}.{done}", target_of(row), before=before, after=after)


def _facts(row: Model) -> dict[str, Any]:
    return {name: _plain(value) for name, value in model_to_dict(row).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, QuerySet | list | tuple | set):
        return [str(item) for item in value]
    return value
