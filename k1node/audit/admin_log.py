"""Changes made by forms of the console alone, whose verbs write no record of their own: users, groups, notice rules."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import construct_change_message
from django.db.models import Model, QuerySet
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
            _record(request, row, "deleted", None)
        return super().log_deletions(request, queryset)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        # What was chosen, not only which fields were: who may do what is decided in these forms.
        chosen = {name: value for name, value in form.cleaned_data.items() if name in form.changed_data}
        request._audited = {name: _plain(value) for name, value in chosen.items()}  # type: ignore[attr-defined]
        return construct_change_message(form, formsets, add)


def _record(request: HttpRequest, row: Model, done: str, message: Any) -> None:
    after = request.__dict__.pop("_audited", None)
    if after is None and message:
        after = {"said": message}
    trail.record(f"{row._meta.model_name}.{done}", target_of(row), after=after)


def _plain(value: Any) -> Any:
    if isinstance(value, QuerySet | list | tuple | set):
        return [str(item) for item in value]
    return value
