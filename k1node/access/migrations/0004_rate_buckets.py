"""The buckets of the rate limits, on PostgreSQL: unlogged, since what they count is worth nothing after a crash.

On SQLite they have a file of their own (see k1node.access.buckets).
"""

from django.db import migrations

TABLE = "access_ratebucket"


def make(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            f"CREATE UNLOGGED TABLE {TABLE} (name text PRIMARY KEY, hour bigint NOT NULL, burst bigint NOT NULL)"
            # Rows are updated in place, with room for it on each page and no index over what changes.
            " WITH (fillfactor = 50)"
        )


def drop(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"DROP TABLE {TABLE}")


class Migration(migrations.Migration):
    dependencies = [("access", "0003_token_families")]
    operations = [migrations.RunPython(make, drop)]
