"""What the list of dead letters is filtered by, and how an address says which ones are meant."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest

from k1node.lib.admin_paging import TextFilter
from recovery import dead_letters
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter

Status = DeadLetter.Status

ANY_STATE = "all"
# In the address -> of dead_letters.Wanted: what chooses entries on the list chooses the set of a redrive too.
CHOICES = {"task": "task_id", "handler": "handler", "breaker": "circuit_breaker", "fingerprint": "fingerprint"}


class LetterStateFilter(admin.SimpleListFilter):
    """Pending ones, unless others are asked for."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*((str(status), status.label) for status in Status), (ANY_STATE, "All")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        chosen = state_in(request.GET)
        return queryset if chosen is None else queryset.filter(status=chosen)

    def choices(self, changelist: ChangeList) -> Any:
        chosen = self.value() if self.value() in (*Status.values, ANY_STATE) else str(Status.PENDING)
        for value, label in self.lookup_choices:
            query = (
                changelist.get_query_string(remove=[self.parameter_name])
                if value == Status.PENDING
                else changelist.get_query_string({self.parameter_name: value})
            )
            yield {"selected": value == chosen, "query_string": query, "display": label}


def state_in(params: Mapping[str, Any]) -> Status | None:
    """Return the state that an address asks for; None is any."""
    asked = params.get("state")
    if asked == ANY_STATE:
        return None
    return Status(asked) if asked in Status.values else Status.PENDING


def chosen_in(params: Mapping[str, Any]) -> dict[str, str]:
    """Return what of an address chooses entries, their state aside."""
    given = {name: str(params.get(name) or "").strip() for name in CHOICES}
    return {name: value for name, value in given.items() if value}


def wanted_in(params: Mapping[str, Any]) -> Wanted:
    """Return what an address chooses entries by; their state aside."""
    named: dict[str, Any] = {CHOICES[name]: value for name, value in chosen_in(params).items()}
    return Wanted(**named)


class LetterFilter(TextFilter):
    """By something that dead_letters.Wanted knows."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        return queryset & dead_letters.listed(wanted_in({self.parameter_name: self.value}))


class LetterTaskFilter(LetterFilter):
    title = "task"
    parameter_name = "task"
    placeholder = "a task's or a schedule's id"


class HandlerFilter(LetterFilter):
    title = "handler"
    parameter_name = "handler"
    placeholder = "the whole handler"


class LetterBreakerFilter(LetterFilter):
    title = "breaker"
    parameter_name = "breaker"
    placeholder = "a breaker's name"


class FingerprintFilter(LetterFilter):
    title = "error"
    parameter_name = "fingerprint"
    placeholder = "a fingerprint, from By error"
