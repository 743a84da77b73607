"""Addresses of signing in and of keys, under /api/v2/."""

from django.urls import path

from k1node.access.api import views

keys = views.ApiKeyViewSet.as_view

urlpatterns = [
    path("auth/token", views.TokenViewSet.as_view({"post": "issue"}), name="auth-token"),
    path("auth/refresh", views.PossessionViewSet.as_view({"post": "refresh"}), name="auth-refresh"),
    path("auth/revoke", views.PossessionViewSet.as_view({"post": "revoke"}), name="auth-revoke"),
    path("api-keys", keys({"get": "list_keys", "post": "create"}), name="api-keys"),
    path("api-keys/<str:key_id>", keys({"get": "get", "patch": "update", "delete": "delete_key"}), name="api-key"),
    path("api-keys/<str:key_id>/rotate", keys({"post": "rotate"}), name="api-key-rotate"),
    path("api-keys/<str:key_id>/revoke", keys({"post": "revoke"}), name="api-key-revoke"),
]
