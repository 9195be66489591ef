"""The plans every installation starts with; an administrator may change them all."""

from django.db import migrations

PLANS = [
    {
        "name": "free",
        "lane": "interactive",
        "weight": 1.0,
        "requests_per_minute": 20,
        "tokens_per_day": 200_000,
        "gpu_seconds_per_day": 3600.0,
        "concurrent": 2,
        "is_default": True,
    },
    {
        "name": "team",
        "lane": "interactive",
        "weight": 2.0,
        "requests_per_minute": 60,
        "tokens_per_day": 2_000_000,
        "gpu_seconds_per_day": 36_000.0,
        "concurrent": 8,
    },
    {
        "name": "vip",
        "lane": "vip",
        "weight": 4.0,
        "requests_per_minute": 120,
        "tokens_per_day": 10_000_000,
        "gpu_seconds_per_day": None,
        "concurrent": 16,
    },
    {"name": "unlimited", "lane": "interactive", "weight": 1.0},
]


def create_plans(apps, schema_editor):
    plan = apps.get_model("accounts", "Plan")
    alias = schema_editor.connection.alias
    has_default = plan.objects.using(alias).filter(is_default=True).exists()
    for fields in PLANS:
        defaults = {**fields, "is_default": fields.get("is_default", False) and not has_default}
        plan.objects.using(alias).get_or_create(name=defaults.pop("name"), defaults=defaults)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [migrations.RunPython(create_plans, migrations.RunPython.noop)]
