"""Every address of the node. Paths of the API have no trailing slash."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from k1node import health
from k1node.access import signing_in
from k1node.api import pages

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/login/", signing_in.SignIn.as_view()),  # in place of the admin's own, whose name stays
    path("admin/", admin.site.urls),
    path("", include("k1node.access.oauth.urls")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("api/versions", pages.VersionsView.as_view(), name="versions"),
    path("api/errors", pages.ErrorsPage.as_view(), name="errors"),
    path("api/migration", pages.MigrationView.as_view(), name="migration"),
    path("api/v2/openapi.json", pages.OpenApiView.as_view(), name="openapi"),
    path("api/v2/docs", pages.SwaggerPage.as_view(), name="docs"),
    path("api/v2/redoc", pages.RedocPage.as_view(), name="redoc"),
    path("api/v2/", include("k1node.access.api.urls")),
    path("api/v2/", include("batches.api.urls")),  # before tasks/<task_id>
    path("api/v2/", include("scheduling.api.urls")),
    path("api/v2/", include("recovery.api.urls")),
    path("api/v2/", include("webhooks.api.urls")),
    path("api/v2/", include("k1node.audit.api.urls")),
]

handler400 = "k1node.api.errors.bad_request"
handler403 = "k1node.api.errors.permission_denied"
handler404 = "k1node.api.errors.not_found"
handler500 = "k1node.api.errors.server_error"
