from django.db import migrations


def make(apps, schema_editor):
    """On SQLite the cache is a file of its own, made when it is opened."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            "CREATE UNLOGGED TABLE k1node_cache ("
            "key TEXT PRIMARY KEY, number BIGINT, value TEXT, expires_at DOUBLE PRECISION NOT NULL)"
        )
        schema_editor.execute("CREATE INDEX k1node_cache_expires_at ON k1node_cache (expires_at)")


def drop(apps, schema_editor):
    schema_editor.execute("DROP TABLE IF EXISTS k1node_cache")


class Migration(migrations.Migration):
    dependencies = [("access", "0004_rate_buckets")]

    operations = [migrations.RunPython(make, drop)]
