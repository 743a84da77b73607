"""The base of every endpoint: validate, one call into the app, respond."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.viewsets import ViewSet

from k1node.access import limits
from k1node.access.authentication import kind_of
from k1node.access.principal import Principal
from k1node.api import conditional, idempotency
from k1node.api.negotiation import Negotiation
from k1node.api.pagination import PagePagination
from k1node.api.serializers import QuerySerializer, StrictSerializer
from k1node.audit import trail
from k1node.lib import origin, sql
from k1node.lib.errors import FieldInvalid, NotFound, PreconditionFailed

Row = TypeVar("Row")
Result = TypeVar("Result")


class ApiViewSet(ViewSet):
    """Names, for each action, the scopes of which any one opens it; an action without an entry is open to nobody.

    Bound in urls.py: path("scheduler/schedules", ScheduleViewSet.as_view({"get": "list", "post": "create"})),
    with typed path parameters (<str:task_id>), which the OpenAPI document needs.
    """

    required_scopes: ClassVar[Mapping[str, Sequence[str]]] = {}
    # For the OpenAPI document, by action: the design's operationIds. And its tags, for all actions.
    operation_ids: ClassVar[Mapping[str, str]] = {}
    tags: ClassVar[Sequence[str]] = ()
    # Statuses of errors that an action has beside those of its method and path.
    more_errors: ClassVar[Mapping[str, Sequence[int]]] = {}
    # The key of a list's rows in its answer, and the name of that answer's component.
    list_key = "entries"
    list_name: str | None = None
    pagination_class: type[PagePagination] = PagePagination
    # Whether a POST heeds Idempotency-Key (never one of an unknown caller), and the fields of answers that only the
    # first may show.
    idempotent: ClassVar[bool] = True
    secret_fields: ClassVar[Sequence[str]] = ()
    # The actions that are `tagged` or `guarded`, and the fields of the row that a PATCH can change.
    conditional_actions: ClassVar[Collection[str]] = ()
    settings_fields: ClassVar[Sequence[str]] = ()
    filter_backends: ClassVar[Sequence[Any]] = ()

    content_negotiation_class = Negotiation
    metadata_class = None
    http_method_names = ["get", "post", "put", "patch", "delete", "head"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            # The framework's requests and serializers refer to themselves: without this, megabytes of parsed bodies
            # pile up until the collector of cycles comes by. What the answer took out of this one stays.
            body: Any = getattr(self.request, "_full_data", None)
            if type(body) in (dict, list):
                body.clear()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if (request.method or "") not in self.allowed_methods:
            # An action may be called `get`, and the framework would take it for the answer to a GET of any path.
            self.http_method_not_allowed(request)
        if request.method == "POST" and self.idempotent and isinstance(request.user, Principal):
            key = idempotency.key_of(request)
            if key is not None:
                name = "post"  # by which the framework looks for the handler, after this
                setattr(self, name, partial(idempotency.once, self, key, getattr(self, name)))

    def perform_authentication(self, request: Request) -> None:
        """Recognise the caller and let them pay for the request. Raises AuthenticationFailed, RateLimited."""
        try:
            super().perform_authentication(request)
        except (AuthenticationFailed, PermissionDenied) as error:
            # Beyond the limit a credential is not even a failed one.
            limits.charge(request._request, None)
            trail.refused(kind_of(request) + ".refused", getattr(error, "reason", str(error.detail)))
            raise
        if not isinstance(request.user, Principal):
            if limits.verdict_on(request._request) is None:
                limits.charge(request._request, None)
            return
        origin.recognised(request.user.identity, request.user.name)
        limits.charge(request._request, request.user)

    def check_permissions(self, request: Request) -> None:
        try:
            super().check_permissions(request)
        except NotAuthenticated:
            # Another scheme than Bearer, a session that is over: tried, and not even looked at.
            if "HTTP_AUTHORIZATION" in request.META or settings.SESSION_COOKIE_NAME in request.COOKIES:
                trail.refused(kind_of(request) + ".refused", "not a credential, or a session that is over")
            raise
        except PermissionDenied as error:
            trail.refused("access.denied", str(error.detail), target=f"{request.method} {request.path_info}")
            raise

    @property
    def allowed_methods(self) -> list[str]:
        return [method.upper() for method in self.action_map or ()]

    @property
    def principal(self) -> Principal:
        return self.request.user  # type: ignore[return-value]

    def validated(
        self, message: type[StrictSerializer], *, data: Any = None, partial: bool = False, **context: Any
    ) -> dict[str, Any]:
        """Return the request's body (or `data`) as `message` reads it; anything wrong with it is a 400."""
        serializer = message(
            data=self.request.data if data is None else data,
            partial=partial,
            context={"request": self.request, "view": self, **context},
        )
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def query(self, message: type[QuerySerializer] = QuerySerializer) -> dict[str, Any]:
        """Return the query parameters as `message` reads them; unknown and repeated ones are a 400.

        Those of the pagination are let pass on lists (an action named `list` or with `list` in its name).
        """
        given: dict[str, str] = {}
        for name, values in self.request.query_params.lists():
            if len(values) > 1:
                raise FieldInvalid(name, "Must be given once", f"Leave out all but one {name}")
            given[name] = values[0]
        serializer = message(data=given, context={"request": self.request, "view": self})
        serializer.ignored = frozenset(parameter["name"] for parameter in self.pagination_class.parameters)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def listed(
        self,
        rows: QuerySet[Any] | Sequence[Any],
        output: type[BaseSerializer[Any]],
        *,
        paginator: PagePagination | None = None,
        **context: Any,
    ) -> Response:
        """Return the page of `rows` that the request asks for, each written by `output`."""
        paginator = paginator or self.pagination_class()
        page = paginator.paginate_queryset(rows, self.request, self)
        shown = output(page, many=True, context={"request": self.request, "view": self, **context})
        return paginator.get_paginated_response(shown.data)

    def found(self, rows: QuerySet[Row], **lookup: Any) -> Row:  # type: ignore[type-var]
        """Return the one row of `rows` that fits. Raises NotFound."""
        row = rows.filter(**lookup).first()
        if row is None:
            raise NotFound()
        return row

    def tagged(self, row: Model, response: Response) -> Response:
        """Return `response`, which shows `row`, with its ETag; or a 304 if the caller knows this state already."""
        # Version 1 has the same data in an envelope.
        form = str(getattr(self.request._request, "api_version", ""))
        # What is shown once is no part of the state.
        shown = {name: value for name, value in response.data.items() if name not in self.secret_fields}
        etag = conditional.tag(row, self.settings_fields, shown, form)
        if self.request.method in ("GET", "HEAD"):
            known = conditional.named(self.request, conditional.IF_NONE_MATCH)
            if known is not None and conditional.is_known(etag, known):
                response = Response(status=304)
            # The caller may keep it, but has to ask each time whether it still holds.
            response["Cache-Control"] = "private, no-cache"
        response["ETag"] = etag
        return response

    def guarded(self, rows: QuerySet[Any], write: Callable[[], Result]) -> Result:
        """Return write(), unless If-Match names another version of the one row in `rows`, which is locked for that.

        Raises NotFound and PreconditionFailed. Without the header there is neither a lock nor a query.
        """
        meant = conditional.named(self.request, conditional.IF_MATCH)
        if meant is None:
            return write()

        def work() -> Result:
            row = (rows.select_for_update(no_key=True) if sql.is_postgresql() else rows).first()
            if row is None:
                raise NotFound()
            if not conditional.is_meant(conditional.version(row, self.settings_fields), meant):
                raise PreconditionFailed()
            return write()

        return sql.in_transaction(work)


def created(body: Any, *, location: str) -> Response:
    """Return 201; `location` is the path of what was made."""
    return Response(body, status=201, headers={"Location": location})


def accepted(body: Any, *, location: str | None = None) -> Response:
    """Return 202; `location` is the path that tells how it goes on."""
    return Response(body, status=202, headers={"Location": location} if location else None)


def gone() -> Response:
    """Return 204, for what is deleted."""
    return Response(status=204)


__all__ = ["ApiViewSet", "Request", "Response", "accepted", "created", "gone"]
