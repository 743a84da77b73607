"""Keys get an id for addresses, an address list, and what is known of their making, use, replacement and end."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import k1node.access.models


def give_ids(apps: Any, schema_editor: Any) -> None:
    keys = apps.get_model("access", "ApiKey").objects
    for pk in keys.filter(public_id__isnull=True).values_list("pk", flat=True):
        keys.filter(pk=pk).update(public_id=k1node.access.models.key_id())


class Migration(migrations.Migration):
    dependencies = [("access", "0001_initial")]

    operations = [
        migrations.AddField("apikey", "public_id", models.CharField(max_length=40, null=True)),
        migrations.RunPython(give_ids, migrations.RunPython.noop),
        migrations.AlterField(
            "apikey",
            "public_id",
            models.CharField(default=k1node.access.models.key_id, max_length=40, unique=True),
        ),
        migrations.AddField("apikey", "allowed_cidrs", models.JSONField(blank=True, default=list)),
        migrations.AddField("apikey", "created_by", models.CharField(blank=True, default="", max_length=150), False),
        migrations.AddField("apikey", "last_used_ip", models.CharField(blank=True, default="", max_length=45), False),
        migrations.AddField("apikey", "revoked_reason", models.CharField(blank=True, default="", max_length=500), False),
        migrations.AddField(
            "apikey",
            "replaced_by",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="replaces",
                to="access.apikey",
            ),
        ),
    ]
