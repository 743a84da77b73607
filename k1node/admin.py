"""What the console is called, and what it does not show."""

from django.contrib import admin
from django.contrib.auth import admin as auth_admin
from django.contrib.auth.models import User
from django_q import admin as django_q_admin
from oauth2_provider import admin as oauth_admin

from k1node.audit.admin_log import AuditedAdmin
from k1node.lib.admin_base import SET_UP, ConsoleAdmin

admin.site.site_header = "K1.Node"
admin.site.site_title = "K1.Node"
admin.site.index_title = "Overview"
admin.site.site_url = None
admin.site.enable_nav_sidebar = False

# Importing the modules has registered their models. The task table is the queue: django-q2's own tables are empty.
HIDDEN_APPS = {User._meta.app_label, django_q_admin.Schedule._meta.app_label}
for hidden in [model for model in admin.site._registry if model._meta.app_label in HIDDEN_APPS]:
    admin.site.unregister(hidden)
admin.site.unregister(oauth_admin.id_token_model)  # no OpenID Connect here


@admin.register(User)
class OperatorAdmin(AuditedAdmin, auth_admin.UserAdmin, ConsoleAdmin):  # type: ignore[type-arg]
    section = SET_UP
    place = 30
    summary = "Who signs in to this console"
    show_full_result_count = False
    list_filter = ("is_superuser", "is_active")
