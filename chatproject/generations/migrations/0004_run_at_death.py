from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("generations", "0003_figures"),
    ]

    # Without a default: SQLite then adds the column in place, and the trigger of 0002 stays.
    operations = [
        migrations.AddField(
            model_name="generation",
            name="run_at_death",
            field=models.BigIntegerField(blank=True, help_text="the last run whose death was counted", null=True),
        ),
    ]
